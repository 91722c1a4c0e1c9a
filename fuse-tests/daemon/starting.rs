//! How a mount comes to be.

use std::fs;
use std::process::Stdio;

use libtest_mimic::Completion;
use overfall::{Backend, Overlay};

use super::place::{Place, Who, finish, run};
use super::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    ("the_tree_is_usable_at_once", the_tree_is_usable_at_once),
    ("the_callers_pipes_are_let_go", the_callers_pipes_are_let_go),
    (
        "the_servers_own_descriptors_only",
        the_servers_own_descriptors_only,
    ),
    (
        "a_layer_may_contain_the_target",
        a_layer_may_contain_the_target,
    ),
    ("bad_input_is_one_line", bad_input_is_one_line),
    ("auto_says_why_it_is_fuse", auto_says_why_it_is_fuse),
    (
        "a_library_mounts_and_unmounts",
        a_library_mounts_and_unmounts,
    ),
    ("a_dropped_guard_unmounts", a_dropped_guard_unmounts),
    (
        "a_dropped_guard_takes_its_own_mount_only",
        a_dropped_guard_takes_its_own_mount_only,
    ),
];

fn the_tree_is_usable_at_once(place: &Place) -> Verdict {
    let options = place.options();
    let script = format!(
        "{} mount --backend fuse -o {options} merged && cat merged/hello",
        place.program().display()
    );
    let said = place.shell(&script);
    assert_eq!(said.out, "hello\n", "{said:?}");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

/// vagga reads a pipe to its end that the mounting process has inherited.
fn the_callers_pipes_are_let_go(place: &Place) -> Verdict {
    let options = place.options();
    let script = format!(
        "exec 9>&1; {} mount --backend fuse -o {options} merged; echo done",
        place.program().display()
    );
    let mut command = place.command("sh");
    command
        .args(["-c", &script])
        .current_dir(&place.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Fails when the pipes don't come to their end while the server runs.
    let said = finish(command.spawn()?);
    assert_eq!(said.out, "done\n", "{said:?}");
    assert!(place.is_mounted());
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

fn the_servers_own_descriptors_only(place: &Place) -> Verdict {
    let options = place.options();
    let script = format!(
        "exec 7</etc/passwd; {} mount --backend fuse -o {options} merged",
        place.program().display()
    );
    let said = place.shell(&script);
    assert_eq!(said.code, Some(0), "{said:?}");
    let server = place.server().as_raw_nonzero();
    let said = place.shell(&format!("ls -l /proc/{server}/fd"));
    assert!(said.out.contains("/dev/fuse"), "{said:?}");
    assert!(!said.out.contains("/etc/passwd"), "{said:?}");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

/// fuse-overlayfs#277: a mount over one of its own layers hangs.
fn a_layer_may_contain_the_target(place: &Place) -> Verdict {
    let said = place.shell("mkdir lower/in && touch lower/in/beneath");
    assert_eq!(said.code, Some(0), "{said:?}");
    let options = place.options();
    let mount = ["mount", "--backend", "fuse", "-o", &options, "lower/in"];
    let said = run(place.overfall(&mount));
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = place.shell("ls lower/in lower/in/in; find lower/in | wc -l");
    assert_eq!(
        said.out, "lower/in:\nhello\nin\n\nlower/in/in:\nbeneath\n4\n",
        "{said:?}"
    );
    assert_eq!(run(place.overfall(&["umount", "lower/in"])).code, Some(0));
    Ok(Completion::Completed)
}

fn bad_input_is_one_line(place: &Place) -> Verdict {
    let good = place.options();
    let bad = [
        (vec!["mount", "-o", "lowerdir=nowhere", "merged"], "nowhere"),
        (vec!["mount", "-o", &good, "nowhere"], "nowhere"),
        (
            vec!["mount", "-o", "lowerdir=lower,lazy=1", "merged"],
            "lazy",
        ),
        (vec!["umount", "merged"], "nothing is mounted there"),
        (vec!["umount", "/proc"], "proc"),
        (
            vec![
                "mount",
                "--backend",
                "fuse",
                "-o",
                "lowerdir=lower:upper,nfs_export=on",
                "merged",
            ],
            "nfs_export=on",
        ),
    ];
    for (arguments, word) in bad {
        let said = run(place.overfall(&arguments));
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert_eq!(said.err.lines().count(), 1, "{arguments:?}: {said:?}");
        assert!(said.err.contains(word), "{arguments:?}: {said:?}");
    }
    assert!(!place.is_mounted());
    place.until_no_server();
    Ok(Completion::Completed)
}

fn auto_says_why_it_is_fuse(place: &Place) -> Verdict {
    if place.who == Who::Root {
        return Ok(Completion::ignored_with("root's kernel may well carry it"));
    }
    let options = place.options();
    let said = run(place.overfall(&["-v", "mount", "-o", &options, "merged"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("a plain user may not mount"), "{said:?}");
    assert!(said.err.contains("carried by fuse"), "{said:?}");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

fn overlay(place: &Place) -> Overlay {
    let dir = &place.dir;
    let lower = dir.join("lower");
    let lowers = [lower.as_path()];
    Overlay::writable(
        lowers.into_iter(),
        dir.join("upper"),
        dir.join("work"),
        dir.join("merged"),
    )
    .backend(Backend::Fuse)
}

fn a_library_mounts_and_unmounts(place: &Place) -> Verdict {
    if place.who == Who::Plain {
        return Ok(Completion::ignored_with(
            "this process is the library's caller",
        ));
    }
    let mounted = overlay(place).mount()?;
    assert_eq!(mounted.backend().to_string(), "fuse");
    assert_eq!(mounted.why_not_native(), None);
    fs::write(place.merged().join("new"), "new")?;
    mounted.unmount()?;
    assert!(!place.is_mounted());
    assert_eq!(fs::read(place.dir.join("upper/new"))?, b"new");
    // The lock of the work directory is free: at once, not soon.
    overlay(place).mount()?.unmount()?;
    Ok(Completion::Completed)
}

fn a_dropped_guard_unmounts(place: &Place) -> Verdict {
    if place.who == Who::Plain {
        return Ok(Completion::ignored_with(
            "this process is the library's caller",
        ));
    }
    let mounted = overlay(place).mount()?;
    let open = fs::File::open(place.merged().join("hello"))?;
    drop(mounted);
    assert!(!place.is_mounted());
    drop(open);
    Ok(Completion::Completed)
}

fn a_dropped_guard_takes_its_own_mount_only(place: &Place) -> Verdict {
    if place.who == Who::Plain {
        return Ok(Completion::ignored_with(
            "this process is the library's caller",
        ));
    }
    let mounted = overlay(place).mount()?;
    let over = place.shell("mount -t tmpfs victim merged && touch merged/victims");
    drop(mounted);
    let left = place.shell("ls merged; umount merged; cat merged/hello; umount merged");
    assert_eq!(over.code, Some(0), "{over:?}");
    assert_eq!(left.out, "victims\nhello\n", "{left:?}");
    Ok(Completion::Completed)
}
