use std::fs;

use rustix::fs::{CWD, Mode, XattrFlags, makedev, mknodat, setxattr};

use super::*;
use crate::changes::{Summary, summary};
use crate::format::OPAQUE;

struct Layers {
    _home: tempfile::TempDir,
    upper: PathBuf,
    lowers: Vec<PathBuf>,
}

fn layers() -> Layers {
    let home = tempfile::tempdir().unwrap();
    let [upper, top, bottom] = ["upper", "top", "bottom"].map(|name| {
        let path = home.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    Layers {
        _home: home,
        upper,
        lowers: vec![top, bottom],
    }
}

fn whiteout(path: &Path) {
    let mode = Mode::empty();
    mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(0, 0)).unwrap();
}

fn opaque(path: &Path) {
    let name = XattrNamespace::User.opaque();
    setxattr(path, name, OPAQUE, XattrFlags::empty()).unwrap();
}

impl Layers {
    fn changes(&self) -> Vec<(String, Change)> {
        let mut found = Vec::new();
        walk(
            &self.upper,
            &self.lowers,
            XattrNamespace::User,
            Owners::Real,
            &mut |path, change| found.push((path.display().to_string(), change)),
        )
        .unwrap();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    fn summary(&self) -> Summary {
        summary(
            &self.upper,
            &self.lowers,
            XattrNamespace::User,
            Owners::Real,
        )
        .unwrap()
    }
}

fn expect(found: &[(String, Change)], wanted: &[(&str, Change)]) {
    let found: Vec<_> = found
        .iter()
        .map(|(path, change)| (path.as_str(), *change))
        .collect();
    assert_eq!(found, wanted);
}

#[test]
fn an_empty_upper_changed_nothing() {
    let layers = layers();
    fs::write(layers.lowers[0].join("f"), "x").unwrap();
    assert_eq!(layers.summary().to_string(), "nothing changed");
}

#[test]
fn added_changed_and_removed_are_told_apart() {
    let layers = layers();
    fs::write(layers.lowers[1].join("kept"), "x").unwrap();
    fs::write(layers.lowers[1].join("changed"), "x").unwrap();
    fs::write(layers.lowers[0].join("removed"), "x").unwrap();
    fs::create_dir(layers.lowers[1].join("d")).unwrap();
    fs::write(layers.lowers[1].join("d/in"), "x").unwrap();

    fs::write(layers.upper.join("changed"), "y").unwrap();
    fs::write(layers.upper.join("new"), "y").unwrap();
    whiteout(&layers.upper.join("removed"));
    // Left over by somebody: there is nothing to remove.
    whiteout(&layers.upper.join("never"));
    // Copied up because of what is in it.
    fs::create_dir(layers.upper.join("d")).unwrap();
    fs::write(layers.upper.join("d/more"), "y").unwrap();
    expect(
        &layers.changes(),
        &[
            ("changed", Change::Changed),
            ("d/more", Change::Added),
            ("new", Change::Added),
            ("removed", Change::Removed),
        ],
    );
    assert_eq!(
        layers.summary().to_string(),
        "2 added, 1 changed, 1 removed"
    );
}

#[test]
fn an_opaque_directory_hides_no_deletion() {
    let layers = layers();
    for (lower, name) in [(0, "a"), (1, "b"), (1, "c")] {
        fs::create_dir_all(layers.lowers[lower].join("d/sub")).unwrap();
        fs::write(layers.lowers[lower].join("d").join(name), "x").unwrap();
        fs::write(layers.lowers[lower].join("d/sub").join(name), "x").unwrap();
    }
    fs::create_dir_all(layers.upper.join("d/sub")).unwrap();
    opaque(&layers.upper.join("d"));
    fs::write(layers.upper.join("d/b"), "y").unwrap();
    fs::write(layers.upper.join("d/sub/new"), "y").unwrap();
    expect(
        &layers.changes(),
        &[
            ("d/a", Change::Removed),
            ("d/b", Change::Changed),
            ("d/c", Change::Removed),
            ("d/sub/a", Change::Removed),
            ("d/sub/b", Change::Removed),
            ("d/sub/c", Change::Removed),
            ("d/sub/new", Change::Added),
        ],
    );
}

#[test]
fn whiteouts_and_opaque_directories_in_lower_layers_count() {
    let layers = layers();
    fs::write(layers.lowers[1].join("gone"), "x").unwrap();
    whiteout(&layers.lowers[0].join("gone"));
    fs::create_dir(layers.lowers[1].join("d")).unwrap();
    fs::write(layers.lowers[1].join("d/hidden"), "x").unwrap();
    fs::create_dir(layers.lowers[0].join("d")).unwrap();
    opaque(&layers.lowers[0].join("d"));

    fs::write(layers.upper.join("gone"), "y").unwrap();
    fs::create_dir(layers.upper.join("d")).unwrap();
    fs::write(layers.upper.join("d/hidden"), "y").unwrap();
    expect(
        &layers.changes(),
        &[("d/hidden", Change::Added), ("gone", Change::Added)],
    );
}

#[test]
fn a_change_of_type_and_of_a_directory_s_mode_are_changes() {
    use std::os::unix::fs::PermissionsExt;
    let layers = layers();
    fs::create_dir(layers.lowers[0].join("was-dir")).unwrap();
    fs::write(layers.lowers[0].join("was-file"), "x").unwrap();
    fs::create_dir(layers.lowers[0].join("mode")).unwrap();

    fs::write(layers.upper.join("was-dir"), "y").unwrap();
    fs::create_dir(layers.upper.join("was-file")).unwrap();
    fs::create_dir(layers.upper.join("mode")).unwrap();
    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(layers.upper.join("mode"), closed).unwrap();
    expect(
        &layers.changes(),
        &[
            ("mode", Change::Changed),
            ("was-dir", Change::Changed),
            ("was-file", Change::Changed),
        ],
    );
}
