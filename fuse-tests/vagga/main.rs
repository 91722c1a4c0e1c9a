//! `overfall vagga …` on a real project, offline: the containers are made of Debian's
//! busybox-static. Each case runs as root and as a plain user, with the kernel's overlay, with the
//! FUSE server and with copies, and asserts the same. Names are `WHO::MEANS::MODULE::CASE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod build;
mod database;
mod layers;
mod project;
mod run;
mod transient;
mod wrong;

macro_rules! modules {
    ($($module:ident: $($case:ident),*;)*) => {
        fn main() -> std::process::ExitCode {
            project::main(&[$($((
                concat!(stringify!($module), "::", stringify!($case)),
                $module::$case,
            )),*),*])
        }
    };
}

modules! {
    run:
        the_root_is_read_only, volumes_are_there, what_the_environment_is,
        a_writable_root_leaves_the_base_alone, settings_are_followed, an_outdated_container_is_told,
        the_end_of_the_command_is_passed_on,
        snapshots_are_apart, a_snapshot_is_bounded, a_volume_says_who_carries_it;
    transient:
        a_kept_copy_is_continued, a_kept_copy_keeps_its_form, a_number_that_comes_again_is_another_run,
        one_is_cleaned_and_the_other_lives, only_the_dead_are_cleaned, a_killed_run_leaves_nothing,
        runs_killed_at_any_moment_leave_nothing;
    build:
        every_kind_of_step, a_step_as_somebody_else_or_without_a_network,
        a_failed_build_goes_on_where_it_failed, a_changed_step_runs_again,
        a_forced_build_is_what_later_ones_go_on_from, a_forced_build_takes_no_layer_from_others,
        a_built_container_has_vagga_s_layout, a_killed_build_leaves_nothing,
        builds_killed_at_any_moment_leave_nothing, two_builds_at_once,
        a_shell_in_the_failed_state;
    database: a_database_is_started_twice_at_once;
    layers:
        a_container_on_another_copies_nothing, the_setting_overlay_is_followed, what_lies_below_can_t_be_cleaned, another_base_below_is_noticed,
        layers_in_volumes, a_configuration_in_a_container, a_build_leaves_another_s_layers_alone,
        layers_are_shown_outside, a_plain_container_is_shown_elsewhere,
        the_last_build_s_layers_are_told, nobody_writes_through_a_flattened_tree;
    wrong:
        bad_input_is_one_line_and_code_2, an_unknown_step_stops_before_anything,
        the_kernel_s_support_is_told, support_that_can_t_be_tried_is_code_2;
}
