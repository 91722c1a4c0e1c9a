//! `overfall run`, as a user meets it: each case runs the binary as root on the kernel's overlay,
//! as root on FUSE, and as a plain user with what `auto` chooses. Names are `WAY::MODULE::CASE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[allow(dead_code)] // each test binary uses its part
#[path = "common/refuse.rs"]
mod refuse;
#[path = "run/ways.rs"]
mod ways;

macro_rules! modules {
    ($($name:ident = $path:literal: $($case:ident),*;)*) => {
        $(#[path = $path] mod $name;)*

        fn main() -> std::process::ExitCode {
            ways::main(&[$($((concat!(stringify!($name), "::", stringify!($case)), $name::$case)),*),*])
        }
    };
}

modules! {
    ending = "run/ending.rs":
        the_exit_code_is_the_command_s, a_signal_is_passed_on, what_can_t_be_started,
        sigterm_reaches_the_command, what_is_left_running_ends_with_the_command,
        a_killed_run_leaves_nothing, a_run_killed_early_leaves_nothing;
    input = "run/input.rs":
        bad_input_is_one_line_and_code_2, streams_and_descriptors_are_passed_untouched,
        environment_and_directory, the_default_command_is_the_shell;
    owners = "run/owners.rs":
        owners_that_cannot_be_given_are_recorded, without_attributes_owners_are_not_recorded, an_unreadable_file_stays_unreadable,
        an_unreadable_directory_is_empty_for_who_changes_it;
    state = "run/state.rs":
        a_kept_upper_is_continued, a_kept_upper_is_used_once_at_a_time,
        the_state_is_hidden_inside, the_temporary_directory_can_be_chosen,
        the_state_is_closed_to_others, a_fake_root_makes_nothing_real;
    terminal = "run/terminal.rs":
        the_summary_is_for_a_terminal, ctrl_c_ends_the_command, ctrl_z_stops_and_fg_continues;
    tree = "run/tree.rs":
        the_machine_is_untouched, root_can_do_what_root_does, a_user_stays_oneself_when_asked,
        the_kernel_s_directories_work, binds_are_real, layers_lie_on_top_of_the_root,
        another_root, mounts_below_the_root_are_covered, foreign_files_deep_in_a_mount,
        the_command_sees_itself_only,
        a_run_inside_of_a_run;
}
