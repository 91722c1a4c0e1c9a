//! Cases that older kernels can't pass, found by booting them (fuse-tests/kernels): on the kernel's
//! overlay because it did otherwise then; on overfall only where the case compares the two, or
//! where the kernel decides before it asks us.

use super::machine::Variant;
use super::tree::Carrier;

/// A kernel, as (major, minor). The kernels that were booted are 5.10, 6.1, 6.12 and this machine's, so a
/// release here is the first of these with which the case passes.
type Release = (u32, u32);

/// Which variants of a case are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    /// Those on the kernel's overlay.
    Kernel,
    /// All: the case compares, or the kernel decides.
    Both,
}

type Row = (&'static str, On, Release, &'static str);

const OPAQUE: &str = "marks new directories as opaque";
const ESCAPES: &str = "doesn't escape attributes of its own name";
const TMPFILE: &str = "has no unnamed files";
const WHITEOUTS: &str = "doesn't read whiteouts that are attributes";
const VALUES: &str = "takes malformed values of its attributes otherwise";
const SETGID: &str = "keeps setgid bits without the group's execute bit";

const ROWS: &[Row] = &[
    (
        "attr::chown_drops_setgid_of_a_foreign_group",
        On::Kernel,
        (6, 1),
        SETGID,
    ),
    (
        "attr::write_drops_setgid_of_a_foreign_group",
        On::Both,
        (6, 1),
        SETGID,
    ),
    (
        "attr::fallocate_by_somebody_else_drops_setuid",
        On::Kernel,
        (6, 1),
        "keeps setuid bits",
    ),
    (
        "create::new_objects_are_not_marked",
        On::Kernel,
        (6, 1),
        OPAQUE,
    ),
    (
        "layers::lower_that_contains_upper_and_mount",
        On::Kernel,
        (6, 1),
        OPAQUE,
    ),
    (
        "layers::names_that_begin_with_wh",
        On::Kernel,
        (6, 1),
        OPAQUE,
    ),
    (
        "remove::no_whiteout_in_a_pure_upper_directory",
        On::Kernel,
        (6, 1),
        OPAQUE,
    ),
    (
        "remove::full_directory_is_not_copied_up",
        On::Kernel,
        (6, 1),
        OPAQUE,
    ),
    ("rename::kinds_that_do_not_fit", On::Kernel, (6, 1), OPAQUE),
    (
        "foreign::upper_is_what_the_kernel_leaves",
        On::Both,
        (6, 1),
        OPAQUE,
    ),
    ("random::sequences_with_few_names", On::Both, (6, 1), OPAQUE),
    ("random::sequences_over_remounts", On::Both, (6, 1), OPAQUE),
    (
        "foreign::options_that_need_root_are_refused",
        On::Kernel,
        (6, 1),
        "has no userxattr",
    ),
    (
        "format::userxattr_as_root",
        On::Kernel,
        (6, 1),
        "has no userxattr",
    ),
    (
        "ioctl::flags_that_a_copy_keeps",
        On::Kernel,
        (6, 1),
        "copies no inode flags up",
    ),
    ("create::unnamed_file", On::Kernel, (6, 12), TMPFILE),
    (
        "peers::peers_row_10_unnamed_temporary_file",
        On::Kernel,
        (6, 12),
        TMPFILE,
    ),
    (
        "foreign::malformed_metadata_copies",
        On::Kernel,
        (6, 12),
        "takes the attribute as it is",
    ),
    (
        "foreign::data_only_layers",
        On::Kernel,
        (6, 12),
        "has no data-only layers",
    ),
    (
        "foreign::data_that_is_missing",
        On::Kernel,
        (6, 12),
        "has no data-only layers",
    ),
    (
        "foreign::options_that_are_taken",
        On::Kernel,
        (6, 12),
        "has no uuid=on",
    ),
    (
        "layers::five_hundred_lowers",
        On::Kernel,
        (6, 12),
        "has no lowerdir+",
    ),
    (
        "layers::attribute_whiteouts",
        On::Kernel,
        (6, 12),
        WHITEOUTS,
    ),
    (
        "peers::peers_row_11_attribute_whiteouts_are_read",
        On::Kernel,
        (6, 12),
        WHITEOUTS,
    ),
    (
        "rules::layers_on_another_overlay",
        On::Both,
        (6, 12),
        ESCAPES,
    ),
    (
        "xattr::own_private_names_are_hidden",
        On::Kernel,
        (6, 12),
        ESCAPES,
    ),
    (
        "xattr::own_private_names_are_escaped",
        On::Kernel,
        (6, 12),
        ESCAPES,
    ),
    (
        "xattr::escaped_names_survive_a_copy_up",
        On::Kernel,
        (6, 12),
        ESCAPES,
    ),
    (
        "format::upper_is_what_the_kernel_leaves",
        On::Both,
        (6, 12),
        ESCAPES,
    ),
    (
        "format::merged_tree_is_what_the_kernel_shows",
        On::Both,
        (6, 12),
        ESCAPES,
    ),
    ("format::upper_changes_hands", On::Both, (6, 12), ESCAPES),
    (
        "hostile_attributes::on_lower_objects",
        On::Both,
        (6, 12),
        VALUES,
    ),
    (
        "hostile_attributes::on_upper_objects",
        On::Both,
        (6, 12),
        VALUES,
    ),
    (
        "hostile_attributes::on_lower_objects_that_lead_elsewhere",
        On::Both,
        (6, 12),
        VALUES,
    ),
    (
        "hostile_attributes::on_upper_objects_that_lead_elsewhere",
        On::Both,
        (6, 12),
        VALUES,
    ),
    (
        "hostile_attributes::one_that_is_as_long_as_can_be",
        On::Both,
        (6, 12),
        VALUES,
    ),
];

/// Why this kernel can't pass a case, if it is older than the case wants.
pub(crate) fn too_old(case: &str, variant: Variant) -> Option<String> {
    let release = super::release::running();
    let carried = |on| on == On::Both || variant.carrier == Carrier::Kernel;
    let (_, _, (major, minor), why) = ROWS
        .iter()
        .find(|(name, on, since, _)| *name == case && carried(*on) && release < *since)?;
    Some(format!(
        "the kernel's overlay {why} before Linux {major}.{minor}"
    ))
}
