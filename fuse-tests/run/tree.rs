//! What a command sees and does in the merged tree.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::ways::{Way, finish, skip};

pub(crate) fn the_machine_is_untouched(way: &Way) {
    let listing = |path| {
        let output = Command::new("ls").args(["-lAR", "--time-style=full-iso", path]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    let before = listing("/etc");
    let script = "rm -rf /usr/share/doc /etc/*; echo x > /new; ls /etc; cat /new; \
                  test -e /usr/share/doc && echo doc";
    let ran = way.sh(script);
    if way.is_root {
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), "x\n"), "{ran:?}");
        assert_eq!(ran.err, "");
    } else {
        // What the user can't read stays, and rm says so.
        assert!(!ran.out.contains("passwd") && ran.out.ends_with("x\n"), "{ran:?}");
    }
    assert_eq!(listing("/etc"), before);
    assert!(!fs::exists("/new").unwrap());
    assert!(fs::exists("/usr/share/doc").unwrap());
}

pub(crate) fn root_can_do_what_root_does(way: &Way) {
    let script = "id -u; id -g; echo x > /etc/new; chown 1:2 /etc/new; chmod 640 /etc/new; \
                  stat -c '%u %g %a' /etc/new; chown 3 /etc/hostname; stat -c %u /etc/hostname; \
                  stat -c %u / /etc /etc/passwd";
    assert_eq!(way.sh(script).good(), "0\n0\n1 2 640\n3\n0\n0\n0\n");
}

pub(crate) fn a_user_stays_oneself_when_asked(way: &Way) {
    let ran = way.run(&["--as-user"], &["id", "-u"]);
    let id = if way.is_root {
        0
    } else {
        way.become_user.unwrap_or(nix::unistd::getuid().as_raw())
    };
    assert_eq!(ran.good().trim(), id.to_string());
    let file = way.plant("mine", "x");
    let script = format!("echo y >> {file}; cat {file}; stat -c %u {file}");
    let ran = way.run(&["--as-user"], &["sh", "-c", &script]);
    assert_eq!(ran.good(), format!("xy\n{id}\n"));
    assert_eq!(fs::read_to_string(file).unwrap(), "x");
}

pub(crate) fn the_kernel_s_directories_work(way: &Way) {
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo tty > /dev/shm/f; \
                  cat /dev/shm/f; test -r /sys/kernel && readlink /proc/self >/dev/null; \
                  echo here | cat /dev/stdin; test -c /dev/ptmx && test -d /dev/pts && echo pts";
    assert_eq!(way.sh(script).good(), "3\ntty\nhere\npts\n");
    // Devices and the kernel's settings are the machine's.
    let script = "rm -f /dev/null; test -c /dev/null; chmod 600 /dev/null; \
                  echo 1 > /proc/sys/vm/swappiness; echo 1 > /sys/kernel/profiling; true";
    let read = || fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    let before = read();
    assert_eq!(way.sh(script).code, Some(0));
    assert_eq!(read(), before);
    finish(Command::new("sh").args(["-c", "test -c /dev/null && echo > /dev/null"])).good();
}

pub(crate) fn binds_are_real(way: &Way) {
    let real = way.plant_dir("real");
    let inner = way.plant_dir("real/inner");
    let read = way.plant("read/file", "r");
    let read_only = way.path("read");
    let script = format!(
        "echo w > {real}/new; echo w > {inner}/new; echo w > {read}; \
         rm -f {read}; cat {read}; echo w > {read_only}/new; true"
    );
    let options = ["--bind", &real, "--bind-ro", &read_only, "--bind-ro", &inner];
    let ran = way.run(&options, &["sh", "-c", &script]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.ends_with('r'), "{ran:?}");
    assert_eq!(fs::read_to_string(format!("{real}/new")).unwrap(), "w\n");
    assert!(!fs::exists(format!("{inner}/new")).unwrap());
    assert!(!fs::exists(format!("{read_only}/new")).unwrap());
    assert_eq!(fs::read_to_string(&read).unwrap(), "r");
}

pub(crate) fn layers_lie_on_top_of_the_root(way: &Way) {
    let top = way.plant_dir("top");
    let middle = way.plant_dir("middle");
    way.plant("top/layered", "top\n");
    way.plant("middle/layered", "middle\n");
    way.plant("middle/only", "only\n");
    let script = "cat /layered /only; test -d /etc && echo etc; rm /only; ls /only 2>/dev/null; \
                  echo changed > /layered";
    let ran = way.run(&["--lower", &top, "--lower", &middle], &["sh", "-c", script]);
    let device = |path: &str| fs::metadata(path).unwrap().dev();
    if way.backend == "native" && device(&top) == device("/") {
        // The kernel's overlay takes no lower layer inside of another.
        assert_eq!((ran.code, ran.err.lines().count()), (Some(2), 1), "{ran:?}");
        return;
    }
    assert_eq!(ran.good(), "top\nonly\netc\n");
    assert!(fs::exists(format!("{middle}/only")).unwrap());
    assert_eq!(fs::read_to_string(format!("{top}/layered")).unwrap(), "top\n");
}

/// The smallest root that runs a shell: busybox, or the machine's shell with its libraries.
fn small_root(way: &Way) -> String {
    let root = way.plant_dir("root");
    let script = format!(
        "set -e; cd {root}; for tool in sh cat ls; do
           p=$(readlink -f $(command -v $tool)); mkdir -p bin; cp $p bin/$tool
           for l in $(ldd $p | grep -o '/[^ )]*'); do mkdir -p .$(dirname $l); cp -L $l .$l; done
         done; mkdir -p etc tmp; echo own > etc/os; ln -s /etc/os link"
    );
    let made = finish(Command::new("sh").args(["-c", &script]));
    if made.code != Some(0) {
        skip(format!("no small root can be made here: {}", made.err.trim()));
    }
    if let Some(id) = way.become_user {
        let owner = format!("{id}:{id}");
        finish(Command::new("chown").args(["-Rh", &owner, &root])).good();
    }
    root
}

pub(crate) fn another_root(way: &Way) {
    let root = small_root(way);
    let script = "cat /link; ls /; echo x > /etc/os; cat /link; echo > /dev/null; \
                  test -e /proc/self/root && pwd";
    let ran = way.run(&["--root", &root], &["/bin/sh", "-c", script]).good();
    assert!(ran.starts_with("own\nbin\ndev\netc\n") && ran.ends_with("x\n/\n"), "{ran}");
    assert_eq!(fs::read_to_string(format!("{root}/etc/os")).unwrap(), "own\n");
    assert!(!fs::exists(format!("{root}/proc")).unwrap());
    // A bind makes its place.
    let real = way.plant("shown/file", "shown\n");
    let options = ["--root", &root, "--bind-ro", &way.path("shown")];
    assert_eq!(way.run(&options, &["cat", &real]).good(), "shown\n");
}

pub(crate) fn mounts_below_the_root_are_covered(way: &Way) {
    if !nix::unistd::geteuid().is_root() {
        skip("mounting a file system needs root");
    }
    let [disk, read_only] = ["disk", "disk2"].map(|name| way.plant_dir(name));
    let file = way.plant("single", "plain\n");
    let run = way.command(&[]);
    let words = [run.get_program()].into_iter().chain(run.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let inside = format!(
        "set -e; cd {disk}; cat f sub/deep {file}; echo new > f; rm sub/deep; echo y > sub/more; \
         cat f sub/more; ls sub; if echo z > {read_only}/x; then false; fi 2>/dev/null; \
         if echo z > {file}; then false; fi 2>/dev/null; echo done"
    );
    // What the user's root may change, the user must be able to change.
    let owner = way.become_user.unwrap_or(0);
    let script = format!(
        "set -e; mount -t tmpfs t {disk}; cd {disk}; echo in > f; mkdir sub; mount -t tmpfs t sub; \
         echo deep > sub/deep; chown -R {owner} .; mount -t tmpfs -o ro t {read_only}; cd /; \
         mount --bind /etc/passwd {file}; {} -- sh -c '{inside}' | grep -v :; \
         cat {disk}/f {disk}/sub/deep; ls {disk}/sub",
        words.join(" ")
    );
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script])
        .env("TMPDIR", way.scratch());
    let wanted = "in\ndeep\nnew\ny\nmore\ndone\nin\ndeep\ndeep\n";
    assert_eq!(finish(&mut command).good(), wanted);
}

/// The top of a mount may look as if all of it were the user's, as `/var/tmp` and `/home` do.
pub(crate) fn foreign_files_deep_in_a_mount(way: &Way) {
    if !nix::unistd::geteuid().is_root() {
        skip("mounting a file system needs root");
    }
    let disk = way.plant_dir("disk");
    let run = way.command(&[]);
    let words = [run.get_program()].into_iter().chain(run.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let inside = format!(
        "set -e; cd {disk}/dir; chmod 600 file; stat -c \"%u %a\" file; mv below moved; ls moved"
    );
    let owner = way.become_user.unwrap_or(0);
    let script = format!(
        "set -e; mount -t tmpfs -o mode=1777 t {disk}; cd {disk}; mkdir -p dir/below/it; \
         echo x > dir/file; chown {owner}:{owner} dir; cd /; {} -- sh -c '{inside}'; ls {disk}/dir",
        words.join(" ")
    );
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script])
        .env("TMPDIR", way.scratch());
    let wanted = "0 600\nit\nbelow\nfile\n";
    assert_eq!(finish(&mut command).good(), wanted);
}

/// Neither the server nor anything else of ours can be seen or killed from inside.
pub(crate) fn the_command_sees_itself_only(way: &Way) {
    let script = "echo /proc/[0-9]*; kill -9 -1; cat /etc/passwd | wc -l";
    let ran = way.sh(script);
    let lines: Vec<_> = ran.out.lines().collect();
    // Init and the shell.
    assert_eq!(lines.first(), Some(&"/proc/1 /proc/2"), "{ran:?}");
    let known = fs::read_to_string("/etc/passwd").unwrap().lines().count().to_string();
    assert_eq!(lines.last(), Some(&known.as_str()), "{ran:?}");
}

pub(crate) fn a_run_inside_of_a_run(way: &Way) {
    let script = "echo inner > /file; rm /etc/hostname; cat /file; ls /etc/hostname 2>/dev/null; \
                  test -e /var/tmp/overfall-run.* && echo state; exit 6";
    let inner = [way.program(), "run", "--", "sh", "-c", script];
    let outer = [
        &["sh", "-c", "echo outer > /file; \"$@\"; cat /file; ls /etc/hostname", "sh"][..],
        &inner,
    ]
    .concat();
    assert_eq!(way.run(&[], &outer).good(), "inner\nouter\n/etc/hostname\n");
}
