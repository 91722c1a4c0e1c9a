//! The fallback form of an upper and its way to the kernel's (docs/SEMANTICS.md has its rules).
//! The tests of the other modules run on such an upper as `dotted::` and `user_dotted::`; these are
//! about the form itself.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::common::filter::without_whiteouts;
use crate::common::suite::overfall_binary;
use crate::common::{
    Carrier, Limit, Snapshot, Tree, Upper, cases, fails, names, skip, stat, xattr_get, xattr_set,
};

const OURS: Limit = Limit::Fuse("the kernel has no such form");
const DISK: Limit = Limit::Root("it mounts a disk");

cases! {
    begun_only_where_it_must: OURS,
    marks_and_names: OURS,
    names_of_the_form: OURS,
    long_names: OURS,
    upper_without_attributes: DISK,
    kernel_does_not_mount_it: OURS,
    kernels_form_is_not_continued: OURS,
    continued_where_the_kernels_would_be_possible: OURS,
    as_a_lower_layer: OURS,
    other_options_are_refused: Limit::Root("the attributes that lead elsewhere need the machine's root"),
    upgrade: OURS,
    upgrade_keeps_what_is_shown: OURS,
    upgrade_is_refused: OURS,
    upgrade_ends_what_was_begun: OURS,
    upgrade_of_odd_uppers: OURS,
    killed_in_an_upgrade: OURS,
    changes_are_counted: OURS,
    check_tells_the_form: OURS,
}

fn dotted(t: &Tree) {
    // The variants of other forms are the same here: once is enough.
    if t.carrier() == Carrier::Kernel {
        skip("the kernel has no such form");
    }
    t.write_in(Upper::Dotted);
}

fn run(arguments: &[&str]) -> Output {
    Command::new(overfall_binary()).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8(text).unwrap()
}

fn upgrade_of(t: &Tree) -> Output {
    upgrade_at(&t.upper(""), &t.work(""))
}

fn upgrade_at(upper: &Path, work: &Path) -> Output {
    run(&["upgrade-layer", upper.to_str().unwrap(), "--workdir", work.to_str().unwrap()])
}

#[track_caller]
fn upgraded(t: &Tree) -> String {
    let output = upgrade_of(t);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    said(&output)
}

/// The names in the upper, of all depths, that mean something to the form.
fn own_names(dir: &Path) -> Vec<String> {
    let found = Snapshot::of(dir).0.into_keys();
    let mut found: Vec<_> = found
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".wh.")))
        .map(|path| path.display().to_string())
        .collect();
    found.sort();
    found
}

fn begun_only_where_it_must(t: &Tree) {
    t.lower(&["a=A"]);
    t.write_in(Upper::Kernels);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.umount();
    assert_eq!(own_names(&t.upper("")), [""; 0]);
}

fn marks_and_names(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "b=B", "d/f=F", "e/f=F"]);
    t.mount();
    assert_eq!(own_names(&t.upper("")), [".wh..wh.overfall"]);
    assert!(t.work("work/incompat/overfall-dotted").exists());
    fs::remove_file(t.at("a")).unwrap();
    t.append("b", "+");
    fs::remove_file(t.at("b")).unwrap();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::remove_dir_all(t.at("e")).unwrap();
    fs::create_dir(t.at("e")).unwrap();
    let marks = [".wh..wh.overfall", ".wh.a", ".wh.b", ".wh.d", "e/.wh..wh..opq"];
    assert_eq!(own_names(&t.upper("")), marks);
    for mark in &marks[1..] {
        assert_eq!(stat(t.upper(mark)).len(), 0, "{mark}");
    }
    assert_eq!(t.sketch(), ["e/"]);
    t.remount();
    assert_eq!(t.sketch(), ["e/"]);
    // What is there again needs no whiteout.
    t.write("a", "again");
    fs::create_dir(t.at("d")).unwrap();
    let marks = [".wh..wh.overfall", ".wh.b", "d/.wh..wh..opq", "e/.wh..wh..opq"];
    assert_eq!(own_names(&t.upper("")), marks);
    t.remount();
    assert_eq!(t.sketch(), ["a=again", "d/", "e/"]);
}

/// Names of that beginning can't be made; those of a lower layer are shown and can't be changed.
fn names_of_the_form(t: &Tree) {
    dotted(t);
    t.lower(&[".wh.low=L", ".wh.dir/f=F", ".wh..wh..opq=O", "f=F"]);
    t.mount();
    let shown = [".wh..wh..opq=O", ".wh.dir/", ".wh.dir/f=F", ".wh.low=L", "f=F"];
    for name in [".wh.new", ".wh.f", ".wh..wh.overfall", ".wh."] {
        let at = t.at(name);
        fails(fs::create_dir(&at), libc::EPERM);
        fails(symlink("f", &at), libc::EPERM);
        fails(fs::hard_link(t.at("f"), &at), libc::EPERM);
        fails(fs::rename(t.at("f"), &at), libc::EPERM);
    }
    fails(fs::write(t.at(".wh.new"), "N"), libc::EPERM);
    fails(fs::remove_file(t.at(".wh.low")), libc::EPERM);
    fails(fs::rename(t.at(".wh.low"), t.at("g")), libc::EPERM);
    fails(xattr_set(t.at(".wh.low"), "user.x", b"1"), libc::EPERM);
    fails(fs::remove_dir_all(t.at(".wh.dir")), libc::EPERM);
    fails(fs::write(t.at(".wh.dir/new"), "N"), libc::EPERM);
    assert_eq!(t.sketch(), shown);
    t.remount();
    assert_eq!(t.sketch(), shown);
    assert_eq!(t.read("f"), "F");
}

/// `.wh.` doesn't fit before every name that is to be hidden.
fn long_names(t: &Tree) {
    dotted(t);
    let long = ["s".repeat(251), "l".repeat(252), "m".repeat(255)];
    for name in &long {
        t.lower(&[&format!("{name}=L"), &format!("d/{name}/f=F")]);
    }
    t.lower(&[&format!("{}=K", "k".repeat(255))]);
    t.mount();
    for name in &long {
        t.append(name, "+");
        fs::remove_file(t.at(name)).unwrap();
        fs::remove_dir_all(t.at(&format!("d/{name}"))).unwrap();
        fs::create_dir(t.at(&format!("d/{name}"))).unwrap();
    }
    fs::remove_dir_all(t.at(&format!("d/{}", long[1]))).unwrap();
    let upper = "u".repeat(255);
    t.write(&upper, "U");
    fs::remove_file(t.at(&upper)).unwrap();
    let shown = [
        "d/".to_owned(),
        format!("d/{}/", long[2]),
        format!("d/{}/", long[0]),
        format!("{}=K", "k".repeat(255)),
    ];
    assert_eq!(t.sketch(), shown);
    t.remount();
    assert_eq!(t.sketch(), shown);
    t.umount();
    assert!(upgraded(t).contains("4 whiteouts made, 2 directories"));
    assert!(fs::symlink_metadata(t.upper(&long[2])).unwrap().file_type().is_char_device());
    t.write_in(Upper::Kernels);
    t.mount();
    assert_eq!(t.sketch(), shown);
}

/// ramfs takes no attributes at all.
fn upper_without_attributes(t: &Tree) {
    let disk = t.beside("ram");
    fs::create_dir(&disk).unwrap();
    let kind = Some("ramfs");
    let flags = nix::mount::MsFlags::empty();
    if let Err(errno) = nix::mount::mount(kind, &disk, kind, flags, None::<&str>) {
        skip(format!("ramfs: {errno}"));
    }
    let dirs = ["u", "w"].map(|name| disk.join(name));
    dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
    t.lower(&["a=A", "b=B", "d/f=F", "e/f=F"]);
    xattr_set(t.low("a"), "user.mine", b"1").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        t.low("").display(),
        dirs[0].display(),
        dirs[1].display()
    );
    let target = t.beside("m");
    let target = target.to_str().unwrap();
    let result = std::panic::catch_unwind(|| {
        let output = run(&["mount", "-o", &options, target]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("fallback form"), "{}", said(&output));
        let m = Path::new(target);
        let number = || stat(m.join("a")).ino();
        let first = number();
        fs::write(m.join("a"), "changed").unwrap();
        assert_eq!(number(), first);
        fs::remove_file(m.join("b")).unwrap();
        fs::remove_dir_all(m.join("d")).unwrap();
        fs::remove_dir_all(m.join("e")).unwrap();
        fs::create_dir(m.join("e")).unwrap();
        // Lost on the way, as the kernel's copy-up loses it, too.
        assert_eq!(xattr_get(m.join("a"), "user.mine"), None);
        fails(xattr_set(m.join("a"), "user.other", b"1"), libc::EOPNOTSUPP);
        assert_eq!(names(m), [b"a", b"e"]);
        assert!(run(&["umount", target]).status.success());
        // Nothing is changed by an upgrade that can't be.
        let before = Snapshot::of(&dirs[0]);
        let upper = dirs[0].to_str().unwrap();
        let output = run(&["upgrade-layer", upper]);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("isn't possible here"), "{}", said(&output));
        before.assert_same("before", &Snapshot::of(&dirs[0]), "after");
        let output = run(&["mount", "-o", &options, target]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(names(m), [b"a", b"e"]);
        // Nothing says any more what it was copied from.
        assert_ne!(number(), first);
        assert!(run(&["umount", target]).status.success());
    });
    for mounted in [Path::new(target), &*disk] {
        let _ = nix::mount::umount2(mounted, nix::mount::MntFlags::MNT_DETACH);
    }
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn kernel_does_not_mount_it(t: &Tree) {
    dotted(t);
    t.lower(&["a=A"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.umount();
    t.carry_by(Carrier::Kernel);
    assert!(t.try_mount().is_err());
    t.carry_by(Carrier::Fuse);
    // Nor do we by it, when asked for it, and without being asked we don't choose it.
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        t.low("").display(),
        t.upper("").display(),
        t.work("").display()
    );
    let target = t.beside("m");
    let target = target.to_str().unwrap();
    let output = run(&["mount", "--backend", "native", "-o", &options, target]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("fallback form"), "{}", said(&output));
    let output = run(&["mount", "-o", &options, target]);
    assert!(output.status.success(), "{}", said(&output));
    let shown = names(Path::new(target));
    assert!(run(&["umount", target]).status.success());
    assert_eq!(shown, [b""; 0]);
}

fn kernels_form_is_not_continued(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.write_in(Upper::Kernels);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.umount();
    let before = Snapshot::of(&t.upper(""));
    t.write_in(Upper::Dotted);
    let why = t.try_mount().unwrap_err();
    assert!(why.contains("was written where it could"), "{why}");
    before.assert_same("before", &Snapshot::of(&t.upper("")), "after");
    t.write_in(Upper::Kernels);
    t.mount();
    assert_eq!(t.sketch(), ["b=B"]);
}

fn continued_where_the_kernels_would_be_possible(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "b=B"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.umount();
    t.write_in(Upper::Kernels);
    t.mount();
    assert_eq!(t.sketch(), ["b=B"]);
    fs::remove_file(t.at("b")).unwrap();
    t.umount();
    let log = fs::read_to_string(t.beside("overfall.log")).unwrap();
    assert_eq!(own_names(&t.upper("")), [".wh..wh.overfall", ".wh.a", ".wh.b"], "{log}");
    // For finish(): its work directory keeps the mark.
    t.write_in(Upper::Dotted);
}

fn as_a_lower_layer(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "b=B", "d/f=F", "e/f=F", "e/g=G"]);
    // So many that the names of all layers are remembered.
    for layer in 1..5 {
        let more = ["a=again", "d/h=H", "e/f=again"].map(str::to_owned);
        let own = format!("only{layer}=O");
        t.lower_at(layer, &[&more[0], &more[1], &more[2], &own]);
    }
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/new", "N");
    fs::remove_file(t.at("e/f")).unwrap();
    let shown = t.sketch();
    t.umount();
    let mut layers = vec![t.upper("").display().to_string()];
    layers.extend((0..5).map(|layer| t.layer(layer).display().to_string()));
    let options = format!("lowerdir={}", layers.join(":"));
    let target = t.beside("m");
    let target = target.to_str().unwrap();
    let output = run(&["mount", "-o", &options, target]);
    assert!(output.status.success(), "{}", said(&output));
    let seen = [(); 2].map(|()| crate::common::sketch(Path::new(target)));
    let gone = ["a", "d/f", "d/h", "e/f"].map(|name| Path::new(target).join(name).exists());
    assert!(run(&["umount", target]).status.success());
    assert_eq!(seen, [shown.clone(), shown]);
    assert_eq!(gone, [false; 4]);
}

fn other_options_are_refused(t: &Tree) {
    dotted(t);
    for option in ["redirect_dir=on", "metacopy=on", "index=on"] {
        t.option(option);
        let why = t.try_mount().unwrap_err();
        assert!(why.contains(option) && why.contains("fallback form"), "{why}");
        t.without_option(option);
    }
}

fn upgrade(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "b=B", "d/f=F", "e/f=F"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.append("b", "+");
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    fs::remove_file(t.at("e/f")).unwrap();
    t.umount();
    assert!(upgraded(t).contains("2 whiteouts made, 1 directories marked opaque"));
    assert_eq!(crate::common::sketch(&t.upper("")), ["a!", "b=B+", "d/!", "e/", "e/f!"]);
    let links = stat(t.upper("a")).nlink();
    assert_eq!(links, 2, "whiteouts are links of one");
    assert!(upgraded(t).contains("already"));
    t.write_in(Upper::Kernels);
    for carrier in [Carrier::Kernel, Carrier::Fuse] {
        t.carry_by(carrier);
        if let Err(why) = t.try_mount() {
            assert_eq!(carrier, Carrier::Kernel, "{why}");
            continue;
        }
        assert_eq!(t.sketch(), ["b=B+", "d/", "e/"]);
        t.umount();
    }
}

fn upgrade_keeps_what_is_shown(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "d/f=F", "d/g=G", "e/f=F", "s->a"]);
    t.mount();
    t.append("a", "+");
    xattr_set(t.at("d/f"), "user.mine", b"1").unwrap();
    fs::remove_file(t.at("d/g")).unwrap();
    fs::hard_link(t.at("a"), t.at("d/link")).unwrap();
    fs::remove_dir_all(t.at("e")).unwrap();
    fs::remove_file(t.at("s")).unwrap();
    fs::create_dir(t.at("s")).unwrap();
    let times = |t: &Tree| {
        ["", "d", "s"].map(|dir| {
            let meta = fs::metadata(t.at(dir)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        })
    };
    let before = (Snapshot::of(&t.at("")), times(t));
    t.umount();
    upgraded(t);
    t.write_in(Upper::Kernels);
    t.mount();
    before.0.assert_same("before", &Snapshot::of(&t.at("")), "upgraded");
    assert_eq!(before.1, times(t));
}

fn upgrade_is_refused(t: &Tree) {
    dotted(t);
    t.lower(&["a=A"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    let output = upgrade_of(t);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("in use"), "{}", said(&output));
    t.umount();
    let before = Snapshot::of(&t.upper(""));
    let (upper, work) = (t.upper(""), t.work(""));
    let output = without_whiteouts(|| upgrade_at(&upper, &work));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("isn't possible here"), "{}", said(&output));
    let low = t.low("");
    let output = run(&["upgrade-layer", upper.to_str().unwrap(), "--workdir", upper.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = run(&["upgrade-layer", t.beside("missing").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    before.assert_same("before", &Snapshot::of(&t.upper("")), "after");
    let output = run(&["upgrade-layer", low.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).contains("already"), "{}", said(&output));
    t.mount();
    assert_eq!(t.sketch(), [""; 0]);
}

/// Without the work directory its mark stays, and every mount refuses until it is ended.
fn upgrade_ends_what_was_begun(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "b=B"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.umount();
    let output = run(&["upgrade-layer", t.upper("").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(fs::symlink_metadata(t.upper("a")).unwrap().file_type().is_char_device());
    for form in [Upper::Dotted, Upper::Kernels] {
        t.write_in(form);
        let why = t.try_mount().unwrap_err();
        assert!(why.contains("upgrade-layer"), "{why}");
    }
    t.carry_by(Carrier::Kernel);
    assert!(t.try_mount().is_err());
    t.carry_by(Carrier::Fuse);
    upgraded(t);
    t.mount();
    assert_eq!(t.sketch(), ["b=B"]);
}

/// States that a killed server leaves, and names that aren't ours.
fn upgrade_of_odd_uppers(t: &Tree) {
    dotted(t);
    t.lower(&["a=A", "d/f=F", "e/f=F", "x=X"]);
    // A file and a directory beside what hides the lower ones.
    t.upper_has(&["a=upper", "d/own=O", "e/own=O"]);
    for name in [".wh.a", ".wh.d", "e/.wh.f"] {
        fs::write(t.upper(name), "").unwrap();
    }
    t.mount();
    let shown = ["a=upper", "d/", "d/own=O", "e/", "e/own=O", "x=X"];
    assert_eq!(t.sketch(), shown);
    t.umount();
    let strange = t.upper("e/.wh..wh.plnk");
    fs::create_dir(&strange).unwrap();
    let output = upgrade_of(t);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains(".wh..wh.plnk"), "{}", said(&output));
    assert!(t.try_mount().unwrap_err().contains("upgrade-layer"));
    fs::remove_dir(strange).unwrap();
    upgraded(t);
    assert_eq!(
        crate::common::sketch(&t.upper("")),
        ["a=upper", "d/!", "d/own=O", "e/", "e/f!", "e/own=O"]
    );
    t.write_in(Upper::Kernels);
    t.mount();
    assert_eq!(t.sketch(), shown);
}

/// Killed after any time, it can be begun again; nobody mounts what is half done.
fn killed_in_an_upgrade(t: &Tree) {
    dotted(t);
    let files: Vec<_> = (0..300).map(|n| format!("d{}/f{n}=F", n % 20)).collect();
    t.lower(&files.iter().map(|file| &**file).collect::<Vec<_>>());
    t.mount();
    for n in 0..300 {
        if n % 3 != 0 {
            fs::remove_file(t.at(&format!("d{}/f{n}", n % 20))).unwrap();
        }
    }
    fs::remove_dir_all(t.at("d7")).unwrap();
    fs::create_dir(t.at("d7")).unwrap();
    let shown = t.sketch();
    t.umount();
    let (upper, work) = (t.upper(""), t.work(""));
    let (mut delay, mut half) = (0, 0);
    loop {
        let mut child = Command::new(overfall_binary())
            .args([OsString::from("upgrade-layer"), upper.clone().into()])
            .args([OsString::from("--workdir"), work.clone().into()])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(delay));
        let _ = child.kill();
        if child.wait().unwrap().success() {
            break;
        }
        if upper.join(".wh..wh.overfall").exists() {
            // It hadn't begun.
            delay += 700;
            continue;
        }
        if !upper.join(".wh..wh.overfall-upgrade").exists()
            && !work.join("work/incompat/overfall-dotted").exists()
        {
            // It had ended.
            break;
        }
        half += 1;
        let why = t.try_mount().unwrap_err();
        assert!(why.contains("upgrade-layer"), "{why}");
        t.carry_by(Carrier::Kernel);
        assert!(t.try_mount().is_err(), "the kernel mounts what is half done");
        t.carry_by(Carrier::Fuse);
        delay += 300;
    }
    eprintln!("killed {half} times half way");
    upgraded(t);
    assert_eq!(own_names(&upper), [""; 0]);
    t.write_in(Upper::Kernels);
    t.mount();
    assert_eq!(t.sketch(), shown);
}

fn changes_are_counted(t: &Tree) {
    use overfall::changes::summary;
    use overfall::format::XattrNamespace;
    use overfall::union::Owners;
    dotted(t);
    t.lower(&["a=A", "b=B", "d/f=F", "d/g=G", "e/f=F"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    t.append("b", "+");
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/f", "again");
    t.write("d/new", "N");
    fs::remove_dir_all(t.at("e")).unwrap();
    t.umount();
    let count = || {
        let namespace = match t.is_real_root() {
            true => XattrNamespace::Trusted,
            false => XattrNamespace::User,
        };
        summary(&t.upper(""), &[t.low("")], namespace, Owners::Real).unwrap()
    };
    let before = count();
    assert_eq!((before.added, before.changed, before.removed), (1, 2, 3));
    upgraded(t);
    assert_eq!(before, count());
    t.write_in(Upper::Kernels);
}

fn check_tells_the_form(t: &Tree) {
    let dir = t.beside("u");
    let check = || run(&["check", "--json", "--upper", dir.to_str().unwrap()]);
    let output = check();
    assert!(said(&output).contains(r#""form": "kernel""#), "{}", said(&output));
    let output = without_whiteouts(check);
    assert!(said(&output).contains(r#""form": "dotted""#), "{}", said(&output));
    assert!(said(&output).contains("0:0 devices"), "{}", said(&output));
}
