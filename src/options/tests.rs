use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Options {
    Options::parse(OsStr::new(text)).expect(text)
}

fn refusal(text: &str) -> String {
    Options::parse(OsStr::new(text))
        .expect_err(text)
        .to_string()
}

#[test]
fn layers_with_every_escape() {
    let options = parse(r"lowerdir=/a\:b:c\,d::/e\\::f,upperdir=/u\,u,workdir=/w\:w");
    assert_eq!(options.lower, [Path::new("/a:b"), Path::new("c,d")]);
    assert_eq!(options.data_only, [Path::new(r"/e\"), Path::new("f")]);
    assert_eq!(options.upper.as_deref(), Some(Path::new("/u,u")));
    assert_eq!(options.work.as_deref(), Some(Path::new("/w:w")));
}

#[test]
fn names_need_not_be_utf8() {
    let options = Options::parse(OsStr::from_bytes(b"lowerdir=/\xff\xfe")).expect("bytes");
    assert_eq!(options.lower, [Path::new(OsStr::from_bytes(b"/\xff\xfe"))]);
}

#[test]
fn one_by_one_takes_the_name_as_it_is() {
    let options = parse(r"lowerdir+=/a:b\c,lowerdir+=/d\,e,datadir+=/f");
    assert_eq!(options.lower, [Path::new(r"/a:b\c"), Path::new("/d,e")]);
    assert_eq!(options.data_only, [Path::new("/f")]);
    assert!(refusal("lowerdir+=/a,lowerdir=/b").contains("cannot follow"));
    assert!(refusal("lowerdir=/a,lowerdir+=/b").contains("cannot follow"));
    assert!(refusal("lowerdir+=/a,datadir+=/b,lowerdir+=/c").contains("cannot follow"));
}

#[test]
fn the_last_word_counts() {
    assert_eq!(parse("lowerdir=/a:/b,lowerdir=/c").lower, [Path::new("/c")]);
    assert_eq!(
        parse("lowerdir=/a,volatile,fsync=strict").fsync,
        Fsync::Strict
    );
    assert_eq!(
        parse("lowerdir=/a,fsync=strict,volatile").fsync,
        Fsync::Volatile
    );
    assert_eq!(parse("lowerdir=/a,ro,rw,nosuid").flags, MountFlags::NOSUID);
    assert_eq!(
        parse("lowerdir=/a,noatime,relatime").flags,
        MountFlags::RELATIME
    );
    assert_eq!(parse("lowerdir=/a,fsync=ordered").fsync, Fsync::Auto);
}

#[test]
fn fstab_words_are_dropped() {
    let text = "defaults,,lowerdir=/a,nofail,x-systemd.automount,_netdev";
    assert_eq!(parse(text), parse("lowerdir=/a"));
}

#[test]
fn a_missing_directory_in_the_list_is_refused() {
    for list in ["", "a:", ":a", "a:::b", "::a", "a::", "a::b:c", ":"] {
        let text = refusal(&format!("lowerdir={list}"));
        assert!(text.starts_with("reading the options: "), "{text}");
    }
    assert!(refusal(r"lowerdir=/a\").contains(r"`\\`"));
    assert!(refusal(r"upperdir=/a\").contains("upperdir"));
    assert!(refusal("upperdir=,lowerdir=/a").contains("`upperdir` needs a value"));
}

#[test]
fn unknown_options_are_named() {
    assert_eq!(
        refusal("lowerdir=/a,zork=1"),
        r"reading the options: unknown option `zork`; a `,` in a directory's name is written `\,`"
    );
    assert_eq!(
        refusal("lowerdir=/a,ro,zork"),
        "reading the options: unknown option `zork`"
    );
    assert!(refusal("lowerdir=/a,userxattr=on").contains("takes no value"));
    assert!(refusal("lowerdir=/a,index").contains("needs a value"));
    assert_eq!(
        refusal("lowerdir=/a,redirect_dir=maybe"),
        "reading the options: `redirect_dir=maybe`: the value must be one of on, off, follow, nofollow"
    );
}

#[test]
fn upper_and_work_come_together() {
    assert!(refusal("lowerdir=/a,upperdir=/u").contains("`upperdir` needs a `workdir`"));
    assert!(refusal("lowerdir=/a,workdir=/u").contains("`workdir` needs an `upperdir`"));
    assert!(refusal("upperdir=/u,workdir=/w").contains("no lower directory"));
}

#[test]
fn conflicts_are_the_kernels() {
    let pairs = [
        ("userxattr,redirect_dir=on", true),
        ("userxattr,redirect_dir=off", true),
        ("userxattr,redirect_dir=follow", true),
        ("userxattr,redirect_dir=nofollow", false),
        ("userxattr,metacopy=on", true),
        ("userxattr,metacopy=off", false),
        ("userxattr,verity=on", false),
        ("metacopy=on,redirect_dir=off", true),
        ("metacopy=on,redirect_dir=follow", true),
        ("metacopy=on,redirect_dir=on", false),
        ("metacopy=on,nfs_export=on", true),
        ("index=off,nfs_export=on", true),
        ("index=on,nfs_export=on", false),
    ];
    for (text, refused) in pairs {
        let text = format!("lowerdir=/a,upperdir=/u,workdir=/w,{text}");
        let outcome = Options::parse(OsStr::new(&text));
        assert_eq!(outcome.is_err(), refused, "{text}");
    }
}

#[test]
fn at_most_500_lower_directories() {
    let list = |count: usize| vec!["l"; count].join(":");
    assert_eq!(parse(&format!("lowerdir={}", list(500))).lower.len(), 500);
    assert!(refusal(&format!("lowerdir={}", list(501))).contains("at most 500"));
    assert!(refusal(&format!("lowerdir={}::d", list(500))).contains("at most 500"));
}

#[test]
fn tuning_says_what_it_wants() {
    let refused = |text: &str| refusal(&format!("lowerdir=/a,{text}"));
    for (text, wanted) in [
        (
            "writeback=maybe",
            "`writeback=maybe`: the value must be one of on, off",
        ),
        ("writeback", "`writeback` needs a value"),
        (
            "readdirplus=on",
            "the value must be one of auto, always, off",
        ),
        (
            "timeout=soon",
            "a whole number of seconds up to 4294967295, or never",
        ),
        ("timeout=-1", "a whole number of seconds"),
        ("timeout=4294967296", "a whole number of seconds"),
        (
            "threads=0",
            "`threads=0`: the value must be a number from 1 to 64",
        ),
        ("threads=65", "a number from 1 to 64"),
        ("threads=", "`threads` needs a value"),
        ("passthrough=on,no_open=on", "exclude each other"),
        ("passthrough=on,writeback=on", "exclude each other"),
        ("cache_dirs=off,no_opendir=on", "exclude each other"),
    ] {
        let said = refused(text);
        assert!(said.contains(wanted), "{text}: {said}");
    }
}

#[test]
fn tuning_is_nothing_to_the_kernels_overlay() {
    let text = "lowerdir=/a,timeout=0,writeback=on,no_open=off,readdirplus=always,threads=3";
    let options = parse(text);
    assert_eq!(options.tuning.timeout.duration(), Some(Default::default()));
    assert_eq!(options.tuning.threads.map(Threads::get), Some(3));
    assert_eq!(options.to_kernel_data(|path| path), "lowerdir=/a");
    assert_eq!(options.unsupported_by_fuse(), None);
    assert_eq!(
        parse("lowerdir=/a,timeout=3,timeout=never"),
        parse("lowerdir=/a")
    );
}

#[test]
fn what_the_server_tells_and_may_do() {
    let options = parse(r"lowerdir=/a,debug,log=/var/log/a\,b,seccomp=off");
    let told = Serving {
        debug: true,
        log: Some("/var/log/a,b".into()),
        seccomp: Some(Switch::Off),
    };
    assert_eq!(options.serving, told);
    assert_eq!(options.to_kernel_data(|path| path), "lowerdir=/a");
    assert!(refusal("lowerdir=/a,debug=2").contains("`debug` takes no value"));
    assert!(refusal("lowerdir=/a,log=").contains("`log` needs a value"));
    assert!(refusal("lowerdir=/a,seccomp=no").contains("one of on, off"));
}

#[test]
fn what_only_helpers_take_is_said_to_be_so() {
    for option in [
        "threaded=0",
        "ino32",
        "auto_unmount",
        "max_idle_threads=10",
        "big_writes",
        "lazytime",
        "subtype=x",
    ] {
        let said = refusal(&format!("lowerdir=/a,{option}"));
        assert!(said.contains("by the names `fuse-overlayfs`"), "{said}");
        assert!(!said.contains(r"`\,`"), "{said}");
    }
    for (option, hint) in [
        ("passthrough", "`passthrough` needs a value"),
        ("fsync=0", "one of auto, strict"),
        ("timeout=1.5", "a whole number of seconds"),
        (r#"context="a,b""#, r"written `\,`"),
    ] {
        let said = refusal(&format!("lowerdir=/a,{option}"));
        assert!(said.contains(hint), "{said}");
    }
    assert!(refusal("lowerdir=/a,b").contains(r"written `\,`"));
}

#[test]
fn fuse_names_what_it_lacks() {
    let lacking = |text: &str| parse(&format!("lowerdir=/a,{text}")).unsupported_by_fuse();
    assert_eq!(
        lacking("ro,xino=on,uuid=on,index=on,verity=off,volatile,redirect_dir=on,metacopy=on"),
        None
    );
    assert_eq!(lacking("override_creds"), None);
    for option in [
        "nfs_export=on",
        "verity=on",
        "verity=require",
        "nooverride_creds",
    ] {
        assert_eq!(lacking(option), Some(option));
    }
    assert_eq!(parse("lowerdir=/a::/d").unsupported_by_fuse(), None);
}

#[test]
fn kernel_data_holds_no_generic_flags() {
    let options = parse(r"ro,allow_other,lowerdir=/a\:b,upperdir=/u,workdir=/w,volatile,index=off");
    assert_eq!(
        options.to_kernel_data(|path| path),
        r"lowerdir=/a\:b,upperdir=/u,workdir=/w,index=off,volatile"
    );
}

fn path() -> impl Strategy<Value = PathBuf> {
    let byte = prop_oneof![Just(b'\\'), Just(b':'), Just(b','), Just(b'='), 1..=255_u8];
    proptest::collection::vec(byte, 1..12).prop_map(|bytes| OsString::from_vec(bytes).into())
}

fn one_of<T: words::Word + std::fmt::Debug>() -> impl Strategy<Value = T> {
    proptest::sample::select(T::WORDS).prop_map(|(_, value)| value)
}

fn flags() -> impl Strategy<Value = MountFlags> {
    proptest::sample::subsequence(words::FLAGS, 0..8).prop_map(|chosen| {
        let mut flags = MountFlags::empty();
        for flag in chosen {
            flags.remove(flag.clear);
            flags.insert(flag.set);
        }
        flags
    })
}

prop_compose! {
    fn tuning()(
        timeout in proptest::option::of(any::<u32>()),
        switches in proptest::array::uniform8(proptest::option::of(one_of::<Switch>())),
        readdirplus in proptest::option::of(one_of::<Readdirplus>()),
        threads in proptest::option::of(1..=Threads::MOST),
    ) -> Tuning {
        let [writeback, no_open, no_opendir, no_flush, cache_dirs, cache_symlinks, killpriv,
            passthrough] = switches;
        Tuning {
            timeout: timeout.map_or(Timeout::Never, Timeout::Seconds),
            writeback, no_open, no_opendir, no_flush, cache_dirs, cache_symlinks, readdirplus,
            killpriv, passthrough, threads: threads.and_then(Threads::new),
        }
    }
}

prop_compose! {
    fn serving()(
        debug in any::<bool>(),
        log in proptest::option::of(path()),
        seccomp in proptest::option::of(one_of::<Switch>()),
    ) -> Serving {
        Serving { debug, log, seccomp }
    }
}

prop_compose! {
    fn shown()(
        map in proptest::option::of((0u32..9, 0u32..9, 1u32..9)),
        ids in proptest::array::uniform2(proptest::option::of(0u32..9)),
        records in one_of_records(),
        marks in proptest::array::uniform5(any::<bool>()),
    ) -> Shown {
        let map = map.map(|(disk, shown, count)| format!("{disk}:{shown}:{count}"));
        let map = map.map_or(IdMap::default(), |map| IdMap::parse(map.as_bytes()).unwrap());
        let [squash_to_uid, squash_to_gid] = ids;
        let [squash_to_root, static_nlink, no_acl, no_xattrs, image_layers] = marks;
        Shown {
            uids: map.clone(), gids: map, squash_to_uid, squash_to_gid, squash_to_root, records,
            static_nlink, no_acl, no_xattrs, image_layers,
        }
    }
}

fn one_of_records() -> impl Strategy<Value = Records> {
    proptest::sample::select(vec![
        Records::None,
        Records::Privileged,
        Records::Containers,
    ])
}

prop_compose! {
    fn options()(
        lower in proptest::collection::vec(path(), 1..5),
        data_only in proptest::collection::vec(path(), 0..3),
        writable in proptest::option::of((path(), path())),
        fsync in one_of::<Fsync>(),
        redirect_dir in proptest::option::of(one_of::<RedirectDir>()),
        switches in proptest::array::uniform3(proptest::option::of(one_of::<Switch>())),
        xino in proptest::option::of(one_of::<Xino>()),
        uuid in proptest::option::of(one_of::<Uuid>()),
        verity in proptest::option::of(one_of::<Verity>()),
        credentials in proptest::option::of(one_of::<Credentials>()),
        marks in proptest::array::uniform3(any::<bool>()),
        flags in flags(),
        tuning in tuning(),
        serving in serving(),
        fsname in proptest::option::of("[^\\x00]{1,9}"),
        shown in shown(),
        label in proptest::option::of("[a-z,:\\\\]{1,9}"),
    ) -> Options {
        let (upper, work) = writable.unzip();
        let [metacopy, index, nfs_export] = switches;
        let [userxattr, default_permissions, allow_other] = marks;
        Options {
            lower, data_only, upper, work, userxattr, fsync, redirect_dir, metacopy, index,
            nfs_export, xino, uuid, verity, credentials, default_permissions, allow_other, flags,
            labels: label.into_iter().map(|value| Label { name: "context", value }).collect(),
            tuning, serving, shown, fsname: fsname.map(OsString::from),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(options in options()) {
        let text = options.to_option_string();
        match options.check() {
            Ok(()) => prop_assert_eq!(Options::parse(&text).expect("readable"), options),
            Err(refused) => prop_assert_eq!(Options::parse(&text).expect_err("refused"), refused),
        }
    }

    #[test]
    fn no_string_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Options::parse(OsStr::from_bytes(&bytes));
    }
}
