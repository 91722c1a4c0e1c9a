//! Real programs: the same result as on a plain copy of the directory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{Node, Snapshot, Tree, cases, plant, set_times, skip, text, xattr_set};

cases! {
    sqlite_written_by_two_processes,
    sqlite_with_a_write_ahead_log,
    git_init_commit_and_gc,
    git_clone_and_status,
    tar_unpacks_links_holes_and_attributes,
    tar_packs_the_merged_tree,
    rsync_out_equals_the_source,
    rsync_into_the_mount_twice,
    python_virtual_environment,
    cp_archive_and_rm,
    sed_in_place_and_patch_like_replacement,
    find_sees_what_a_copy_shows,
    make_decides_by_times,
    chown_and_chmod_recursively,
    shell_script_of_everything,
}

/// Runs a program in `dir`; skips the test where the program is missing.
fn run(dir: &Path, program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("HOME", dir.parent().expect("a parent"))
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "t")
        .env("GIT_AUTHOR_EMAIL", "t@localhost")
        .env("GIT_COMMITTER_NAME", "t")
        .env("GIT_COMMITTER_EMAIL", "t@localhost")
        .output();
    let output = output.unwrap_or_else(|e| skip(format!("{program}: {e}")));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn stdout(dir: &Path, program: &str, arguments: &[&str]) -> String {
    String::from_utf8(run(dir, program, arguments).stdout).expect("text")
}

fn sh(dir: &Path, script: &str) -> String {
    stdout(dir, "sh", &["-euc", script])
}

/// A tree with a little of everything, and its plain copy beside the layers.
fn with_copy(t: &Tree) -> PathBuf {
    copied(t, false)
}

/// The same with a hard link. A change breaks a lower one, in the kernel's overlay too: this is
/// for programs that don't change it.
fn with_copy_and_links(t: &Tree) -> PathBuf {
    copied(t, true)
}

fn copied(t: &Tree, links: bool) -> PathBuf {
    let fill = |root: &Path| {
        plant(
            root,
            "user.unused",
            &["a=A", "d/b=B", "d/s/c=C", "l->d/b", "empty=", "d/e/", "n=name", "p|"],
        );
        if links {
            fs::hard_link(root.join("a"), root.join("d/a2")).unwrap();
        }
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.write_all_at(b"data", 3 << 20).unwrap();
        sparse.set_len(8 << 20).unwrap();
        xattr_set(root.join("d/b"), "user.note", b"kept").unwrap();
        for name in ["a", "d/b", "d/s/c", "empty", "n", "sparse", "p"] {
            set_times(&root.join(name), (1_500_000_000, 0), (1_600_000_000, 0)).unwrap();
        }
    };
    let copy = t.beside("copy");
    fs::create_dir(&copy).unwrap();
    fill(&t.low(""));
    fill(&copy);
    t.mount();
    copy
}

/// Levels what no copy keeps: the times of the present and the links of directories.
fn level(_: &Path, node: &mut Node) -> bool {
    if node.is_dir() {
        node.nlink = 0;
    }
    if node.mtime.0 > 1_700_000_000 {
        node.mtime = (0, 0);
    }
    true
}

#[track_caller]
fn same_trees(merged: &Path, copy: &Path) {
    let of = |path| Snapshot::of(path).adjust(level);
    of(copy).assert_same("plain copy", &of(merged), "merged");
}

fn sqlite(t: &Tree, journal: &str) {
    let db = "create table t(who, n); insert into t values('base', 0);";
    let journal = format!("pragma journal_mode={journal};");
    run(&t.low(""), "sqlite3", &["db", &format!("{journal}{db}")]);
    t.mount();
    let dir = t.at("");
    std::thread::scope(|scope| {
        for who in ["one", "two"] {
            let (dir, journal) = (&dir, &journal);
            scope.spawn(move || {
                for n in 0..10 {
                    let insert = format!(
                        "{journal} begin immediate; insert into t values('{who}', {n}); commit;"
                    );
                    run(dir, "sqlite3", &["-cmd", ".timeout 30000", "db", &insert]);
                }
            });
        }
    });
    let query = "select count(*) from t; pragma integrity_check;";
    assert_eq!(stdout(&dir, "sqlite3", &["db", query]), "21\nok\n");
    t.remount();
    assert_eq!(stdout(&t.at(""), "sqlite3", &["db", query]), "21\nok\n");
    assert_eq!(stdout(&t.low(""), "sqlite3", &["db", query]), "1\nok\n");
}

fn sqlite_written_by_two_processes(t: &Tree) {
    sqlite(t, "delete");
}

fn sqlite_with_a_write_ahead_log(t: &Tree) {
    t.lowers_may_change();
    sqlite(t, "wal");
}

fn git_init_commit_and_gc(t: &Tree) {
    t.lower(&["src/one=1", "src/two=2"]);
    t.mount();
    let dir = t.at("");
    run(&dir, "git", &["init", "--quiet"]);
    for round in 0..4 {
        t.append("src/one", &round.to_string());
        run(&dir, "git", &["add", "--all"]);
        run(&dir, "git", &["commit", "--quiet", "-m", "round"]);
    }
    run(&dir, "git", &["gc", "--quiet"]);
    run(&dir, "git", &["fsck", "--strict"]);
    run(&dir, "git", &["checkout", "--quiet", "HEAD~2"]);
    assert_eq!(t.read("src/one"), "101");
    assert_eq!(stdout(&dir, "git", &["status", "--porcelain"]), "");
    t.remount();
    assert_eq!(stdout(&t.at(""), "git", &["status", "--porcelain"]), "");
    assert_eq!(stdout(&t.at(""), "git", &["rev-list", "--all", "--count"]), "4\n");
}

fn git_clone_and_status(t: &Tree) {
    let repository = t.low("repository");
    fs::create_dir(&repository).unwrap();
    sh(
        &repository,
        "git init --quiet . && mkdir d && for i in 1 2 3 4 5; do echo $i > d/f$i; done && \
         ln -s d/f1 link && git add --all && git commit --quiet -m first",
    );
    t.mount();
    let dir = t.at("");
    let source = text(&t.at("repository"));
    // Ours by uid in every variant, but the mount may show another owner to git's check.
    run(&dir, "git", &["-c", "safe.directory=*", "clone", "--quiet", "--no-local", &source, "clone"]);
    assert_eq!(stdout(&t.at("clone"), "git", &["status", "--porcelain"]), "");
    // The lower repository itself: its index knows inode numbers and times.
    assert_eq!(stdout(&t.at("repository"), "git", &["status", "--porcelain"]), "");
    t.append("repository/d/f3", "changed");
    fs::remove_file(t.at("repository/d/f4")).unwrap();
    let status = stdout(&t.at("repository"), "git", &["status", "--porcelain"]);
    assert_eq!(status, " M d/f3\n D d/f4\n");
    run(&t.at("repository"), "git", &["stash", "--quiet"]);
    assert_eq!(t.read("repository/d/f4"), "4\n");
}

fn tar_unpacks_links_holes_and_attributes(t: &Tree) {
    let source = with_copy_and_links(t);
    let archive = text(&t.beside("archive.tar"));
    run(&source, "tar", &["--xattrs", "--sparse", "-cf", &archive, "."]);
    fs::create_dir(t.at("unpacked")).unwrap();
    let unpack = ["--xattrs", "--xattrs-include=user.*", "-xf", &archive, "-C", "unpacked"];
    run(&t.at(""), "tar", &unpack);
    same_trees(&t.at("unpacked"), &source);
    // And over the tree that is there already: every name is replaced.
    run(&t.at(""), "tar", &["--xattrs", "--xattrs-include=user.*", "-xf", &archive]);
    fs::remove_dir_all(t.at("unpacked")).unwrap();
    same_trees(&t.at(""), &source);
}

fn tar_packs_the_merged_tree(t: &Tree) {
    let copy = with_copy_and_links(t);
    let list = |dir: &Path| {
        let sorted = ["--sort=name", "--mtime=@0", "--format=gnu", "--owner=0", "--group=0", "-c", "."];
        run(dir, "tar", &sorted).stdout
    };
    assert!(list(&copy) == list(&t.at("")), "the archives differ");
    t.append("d/b", "+");
    fs::write(copy.join("d/b"), "B+").unwrap();
    assert!(list(&copy) == list(&t.at("")), "the archives differ after a copy-up");
}

fn rsync_out_equals_the_source(t: &Tree) {
    let copy = with_copy_and_links(t);
    fs::create_dir(t.beside("out")).unwrap();
    let (from, to) = (format!("{}/", text(&t.at(""))), format!("{}/", text(&t.beside("out"))));
    run(&copy, "rsync", &["-aHAX", "--sparse", &from, &to]);
    same_trees(&t.beside("out"), &copy);
    same_trees(&t.beside("out"), &t.at(""));
}

fn rsync_into_the_mount_twice(t: &Tree) {
    let copy = with_copy_and_links(t);
    fs::write(copy.join("d/new"), "new").unwrap();
    fs::remove_file(copy.join("n")).unwrap();
    fs::remove_dir_all(copy.join("d/s")).unwrap();
    fs::write(copy.join("d/b"), "changed").unwrap();
    let (from, to) = (format!("{}/", text(&copy)), format!("{}/", text(&t.at(""))));
    run(&copy, "rsync", &["-aHAX", "--delete", &from, &to]);
    same_trees(&t.at(""), &copy);
    let second = stdout(&copy, "rsync", &["-aHAX", "--delete", "--itemize-changes", &from, &to]);
    assert_eq!(second, "", "a second run has nothing to do");
    t.remount();
    same_trees(&t.at(""), &copy);
}

fn python_virtual_environment(t: &Tree) {
    t.lower(&["project/hello.py=print('hello')"]);
    t.mount();
    let dir = t.at("project");
    run(&dir, "python3", &["-m", "venv", "--without-pip", "env"]);
    let python = text(&t.at("project/env/bin/python"));
    assert_eq!(stdout(&dir, &python, &["hello.py"]), "hello\n");
    run(&dir, &python, &["-m", "compileall", "-q", "hello.py"]);
    run(&dir, "python3", &["-m", "venv", "--without-pip", "--clear", "env"]);
    assert_eq!(stdout(&dir, &python, &["-c", "import hello"]), "hello\n");
}

fn cp_archive_and_rm(t: &Tree) {
    let copy = with_copy(t);
    run(&t.at(""), "cp", &["-a", "d", "d2"]);
    run(&copy, "cp", &["-a", "d", "d2"]);
    same_trees(&t.at(""), &copy);
    for dir in [&t.at(""), &copy] {
        run(dir, "rm", &["-r", "d"]);
        run(dir, "mv", &["d2", "d"]);
        run(dir, "cp", &["--sparse=auto", "sparse", "sparse2"]);
    }
    same_trees(&t.at(""), &copy);
    t.remount();
    same_trees(&t.at(""), &copy);
}

fn sed_in_place_and_patch_like_replacement(t: &Tree) {
    let copy = with_copy(t);
    for dir in [&t.at(""), &copy] {
        run(dir, "sed", &["-i", "s/B/replaced/", "d/b"]);
        sh(dir, "printf x > n.tmp && mv n.tmp n && ln -sf n l && ln -f n d/n && touch -d @1500000000 n");
    }
    same_trees(&t.at(""), &copy);
}

fn find_sees_what_a_copy_shows(t: &Tree) {
    let copy = with_copy_and_links(t);
    let list = |dir: &Path| {
        // Without -noleaf: find may count on the link count of directories.
        sh(dir, "find . -printf '%P %y %s %m %l\\n' | sed 's/^\\([^ ]*\\) d [0-9]* /\\1 d /' | sort")
    };
    assert_eq!(list(&t.at("")), list(&copy));
}

fn make_decides_by_times(t: &Tree) {
    t.lower(&["Makefile=out: in\n\tcat in > out\n", "in=1\n"]);
    t.mount();
    let dir = t.at("");
    run(&dir, "make", &["-s"]);
    assert_eq!(t.read("out"), "1\n");
    run(&dir, "make", &["-q"]);
    t.write("in", "2\n");
    set_times(&t.at("out"), (1_000_000, 0), (1_000_000, 0)).unwrap();
    run(&dir, "make", &["-s"]);
    assert_eq!(t.read("out"), "2\n");
}

fn chown_and_chmod_recursively(t: &Tree) {
    let copy = with_copy(t);
    for dir in [&t.at(""), &copy] {
        run(dir, "chmod", &["-R", "u+rwX,go-w", "."]);
        run(dir, "chown", &["-R", "0:0", "."]);
    }
    same_trees(&t.at(""), &copy);
}

fn shell_script_of_everything(t: &Tree) {
    let copy = with_copy(t);
    let script = "
        for i in 1 2 3 4 5 6 7 8 9; do echo $i > f$i; done
        mkdir -p x/y/z && mv f1 f2 x/y && cp x/y/f1 x/y/z
        rm -rf d/s && mkdir d/s && mv f3 d/s/c
        cat d/b f4 f5 >> a; tr a-z A-Z < n > n2; mv n2 n
        ln f6 f6b; ln -s f6 f6s; rm f6
        rm -rf empty && mkdir empty && touch empty/in
        dd if=/dev/zero of=big bs=64k count=40 2>/dev/null; truncate -s 100k big
        split -b 10k big part. && cat part.* | cmp - big && rm part.*
        sort -r -o f9 f9; test $(ls | wc -l) -gt 5
        (cd x && find . -type f | sort | xargs cat) > listing
    ";
    for dir in [&t.at(""), &copy] {
        sh(dir, script);
    }
    same_trees(&t.at(""), &copy);
    t.remount();
    same_trees(&t.at(""), &copy);
}
