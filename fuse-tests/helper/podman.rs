//! podman and buildah, rootless, with their storage on our binary as `mount_program`.
//!
//! What runs in the containers is busybox; no image comes from anywhere.

use std::fs;
use std::sync::OnceLock;

use super::place::{Place, Said, USER_ID, bind_cgroup2, has, until};
use super::{DONE, Verdict, cases, skip};

cases![
    build_run_diff_and_commit,
    ten_at_once,
    stopped_and_started_again,
    the_kernels_overlay_goes_on,
    recorded_permissions,
    other_ids_in_the_container,
    buildah_builds,
];

/// A storage of podman's in a test's place.
struct Storage<'p> {
    place: &'p Place,
    /// For sockets, whose paths have to be short. The user's.
    run: tempfile::TempDir,
}

/// What stands before every script: where podman keeps its things, and how it is called.
const PRELUDE: &str = "\
    export HOME=$PWD/home
    export CONTAINERS_STORAGE_CONF=$PWD/storage.conf CONTAINERS_CONF=$PWD/containers.conf
    unset DBUS_SESSION_BUS_ADDRESS XDG_CONFIG_HOME XDG_DATA_HOME
    run() { podman run --network none \"$@\"; }
    ";

impl<'p> Storage<'p> {
    /// Why podman can't work here; it is tried without an overlay.
    fn new(place: &'p Place) -> Result<Self, String> {
        static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
        for program in ["podman", "crun", "newuidmap", "busybox"] {
            if !has(program) {
                return Err(format!("{program} isn't installed"));
            }
        }
        let run = tempfile::Builder::new().prefix("of").tempdir_in("/tmp");
        let run = run.map_err(|error| error.to_string())?;
        std::os::unix::fs::chown(&run, Some(USER_ID), Some(USER_ID)).unwrap();
        let storage = Self { place, run };
        fs::write(place.dir.join("containers.conf"), CONTAINERS_CONF).unwrap();
        place.ok("mkdir -p home ctx/root/bin ctx/root/lower/d ctx/root/proc ctx/root/dev ctx/root/sys && \
                  cp $(command -v busybox) ctx/root/bin/busybox && \
                  for name in sh cat ls rm mkdir touch chown chmod stat id sleep mv ln find; do \
                  ln -s busybox ctx/root/bin/$name; done; \
                  echo lower >ctx/root/lower/d/f; echo gone >ctx/root/lower/gone");
        let why_not = WHY_NOT.get_or_init(|| {
            bind_cgroup2();
            storage.configure("driver = \"vfs\"\n", "");
            place.give_to_user();
            let said = storage.said(
                "printf 'FROM scratch\\nCOPY root /\\n' >ctx/Try && \
                 podman build -q --isolation chroot -f ctx/Try -t try ctx && \
                 run --rm try /bin/sh -c id",
            );
            let works = said.code == Some(0) && said.out.contains("uid=0");
            storage.said("podman rmi -af; podman system migrate; rm -rf $XDG_RUNTIME_DIR/*; rm -rf home/.local store");
            (!works).then(|| format!("podman can't run a container here: {}", said.err.trim()))
        });
        if let Some(why_not) = why_not {
            return Err(why_not.clone());
        }
        storage.use_ours("");
        place.give_to_user();
        Ok(storage)
    }

    fn configure(&self, driver: &str, overlay: &str) {
        let dir = self.place.dir.display();
        let text = format!(
            "[storage]\n{driver}graphroot = \"{dir}/store\"\nrootless_storage_path = \"{dir}/store\"\n\
             runroot = \"{dir}/runroot\"\n[storage.options.overlay]\n{overlay}"
        );
        fs::write(self.place.dir.join("storage.conf"), text).unwrap();
    }

    /// Has podman call our binary, with more options for the driver.
    fn use_ours(&self, more: &str) {
        let program = self
            .place
            .dir
            .parent()
            .unwrap()
            .join("names/fuse-overlayfs");
        let mount = format!("mount_program = \"{}\"\n{more}", program.display());
        self.configure("driver = \"overlay\"\n", &mount);
    }

    fn said(&self, script: &str) -> Said {
        let run = self.run.path().display();
        let script = format!("{PRELUDE}export XDG_RUNTIME_DIR={run}\n{script}");
        self.place.user_shell(&script)
    }

    /// A script that must end well; what it wrote to stdout.
    fn ok(&self, script: &str) -> String {
        let said = self.said(script);
        assert_eq!(said.code, Some(0), "{script}: {said:?}");
        said.out
    }

    /// An image `base` of two steps, which remove what the first brought.
    fn build(&self) {
        self.ok("cat >ctx/Containerfile <<'END'
FROM scratch
COPY root /
RUN rm -r /lower/d && mkdir /lower/d && touch /lower/d/new && chown 7:8 /lower/d/new
RUN rm /lower/gone && echo two >/two && ln /two /again && chmod 4711 /two
END
            podman build -q --isolation chroot -t base ctx");
    }

    /// Removes everything; nothing may stay.
    fn remove_all(self) {
        self.ok("podman rm -af >/dev/null && podman rmi -af >/dev/null");
        let left = self.ok(
            "find store/overlay -mindepth 1 -maxdepth 1 ! -name l ! -name .has-mount-program; \
                            ls store/overlay/l",
        );
        assert_eq!(left, "", "left in the storage");
        let mounts = self.ok("podman unshare cat /proc/self/mounts");
        let ours = mounts.lines().find(|line| line.contains("/merged "));
        assert_eq!(ours, None, "left mounted");
    }
}

impl Drop for Storage<'_> {
    /// podman keeps a process that holds its namespaces.
    fn drop(&mut self) {
        self.said("podman rm -af -t 0 || { sleep 2; podman rm -af -t 0; }; podman system migrate");
    }
}

/// cgroups are nobody's business here, and no journal is there to log to.
const CONTAINERS_CONF: &str = "\
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
runtime = \"crun\"
[containers]
log_driver = \"k8s-file\"
pids_limit = 0
";

macro_rules! storage_or_skip {
    ($place:expr) => {
        match Storage::new($place) {
            Ok(storage) => storage,
            Err(why) => return skip(why),
        }
    };
}

fn build_run_diff_and_commit(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.build();
    let tree = "stat -c %u:%g /lower/d/*; ls /lower; cat /two; stat -c '%a %h' /again";
    let shown = "7:8\nd\ntwo\n4711 2\n";
    assert_eq!(
        storage.ok(&format!("run --rm base /bin/sh -c \"{tree}\"")),
        shown
    );
    storage.ok(
        "run --name one base /bin/sh -c 'echo three >/three; rm /two; mv /lower /higher; \
         chown 3:4 /higher/d/new; mkdir /many; for n in 1 2 3; do echo $n >/many/$n; done'",
    );
    let mut changes: Vec<String> = storage
        .ok("podman diff one")
        .lines()
        .map(str::to_owned)
        .collect();
    changes.sort();
    let wanted = [
        "A /higher",
        "A /higher/d",
        "A /higher/d/new",
        "A /many",
        "A /many/1",
        "A /many/2",
        "A /many/3",
        "A /three",
        "D /lower",
        "D /two",
    ];
    changes.retain(|line| !line.starts_with("C "));
    assert_eq!(changes, wanted);
    storage.ok("podman commit -q one three");
    let tree = "cat /three; stat -c %u:%g /higher/d/*; ls /many /";
    assert_eq!(
        storage.ok(&format!("run --rm three /bin/sh -c \"{tree}\"")),
        "three\n3:4\n/:\nagain\nbin\ndev\netc\nhigher\nmany\nproc\nrun\nsys\nthree\n\n/many:\n1\n2\n3\n"
    );
    // What is mounted meanwhile is ours.
    let mounts = storage
        .ok("podman unshare sh -c 'podman mount one; cat /proc/self/mounts; podman umount one'");
    assert!(mounts.contains(" fuse.overfall "), "{mounts}");
    storage.remove_all();
    place.until_no_server();
    DONE
}

fn ten_at_once(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.build();
    storage.ok(
        "for n in 0 1 2 3 4 5 6 7 8 9; do run --name n$n base /bin/sh -c \
         \"echo $n >/mine; mv /lower /l$n; sleep 1; cat /mine\" >out$n & done; wait",
    );
    assert_eq!(storage.ok("cat out?"), "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    assert_eq!(storage.ok("podman diff n7 | grep ' /l7$'"), "A /l7\n");
    storage.remove_all();
    place.until_no_server();
    DONE
}

/// Each start is another mount of the same layers, a moment after the one before.
fn stopped_and_started_again(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.build();
    storage.ok("run --name one base /bin/sh -c 'echo x >>/log; cat /log'");
    assert_eq!(storage.ok("podman start -a one"), "x\nx\n");
    let two = "echo x >>/log; sleep 1000";
    storage.ok(&format!("run -d --name two base /bin/sh -c '{two}'"));
    let logged = |times: usize| {
        let wanted = "x\n".repeat(times);
        until("it has written", || {
            storage.said("podman exec two cat /log").out == wanted
        });
    };
    logged(1);
    storage.ok("podman restart -t 0 two");
    logged(2);
    storage.ok("podman kill two >/dev/null");
    // Containers that go with their end are volatile.
    assert_eq!(
        storage.ok("run --rm base /bin/sh -c 'echo x >/log; cat /log'"),
        "x\n"
    );
    let again = "podman cp one:/log - | cat >/dev/null; podman export one >/dev/null";
    storage.ok(again);
    storage.remove_all();
    place.until_no_server();
    DONE
}

/// The upper layer of a container is the kernel's, too. (Where a storage was used with a mount
/// program, podman goes on with one, and writes layers of images in a form of its own. So the image
/// hides nothing here, and podman's note is removed.)
fn the_kernels_overlay_goes_on(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.ok(
        "printf 'FROM scratch\\nCOPY root /\\n' >ctx/Containerfile && \
                podman build -q --isolation chroot -t base ctx",
    );
    storage.ok(
        "run --name one base /bin/sh -c 'rm /lower/gone; rm -r /lower/d; mkdir /lower/d; \
                echo x >/lower/d/x; chown 5:6 /lower/d'",
    );
    // Its mount, and what is in it.
    let look = "podman unshare sh -ec 'cd $(podman mount one); grep $PWD /proc/self/mounts | cut -d\" \" -f3; \
                find . -exec stat -c \"%n %u:%g %a %F %s %Y\" {} + | sort; cd /; podman umount one >/dev/null'";
    let before = storage.ok(look);
    assert!(before.starts_with("fuse.overfall\n"), "{before}");
    storage.configure("driver = \"overlay\"\n", "");
    assert_eq!(storage.ok(look), before, "with the program in PATH");
    let note = "store/overlay/.has-mount-program";
    storage.ok(&format!(
        "podman system migrate; rm {note}; rm -rf runroot/* $XDG_RUNTIME_DIR/*"
    ));
    let after = storage.said(look);
    if !after.out.starts_with("overlay\n") {
        return skip(format!(
            "podman doesn't take the kernel's overlay: {after:?}"
        ));
    }
    assert_eq!(after.out, before.replacen("fuse.overfall", "overlay", 1));
    assert_eq!(storage.ok("run --rm base /bin/cat /lower/gone"), "gone\n");
    storage.remove_all();
    place.until_no_server();
    DONE
}

/// `force_mask`: owners and modes stand in attributes, in the layers that podman writes as well.
fn recorded_permissions(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.use_ours("force_mask = \"700\"\n");
    storage.build();
    // (podman loses set-user-id bits when it writes such a layer.)
    let tree = "chmod 4711 /two; stat -c '%u:%g %a' /two /lower/d/new /bin; chown 3:4 /lower/d/new; chmod 750 /lower/d; \
                stat -c '%u:%g %a' /lower/d/new /lower/d";
    assert_eq!(
        storage.ok(&format!("run --name one base /bin/sh -c \"{tree}\"")),
        "0:0 4711\n7:8 644\n0:0 755\n3:4 644\n0:0 750\n"
    );
    storage.ok("podman commit -q one three");
    assert_eq!(
        storage.ok("run --rm three /bin/stat -c '%u:%g %a' /lower/d/new /lower/d"),
        "3:4 644\n0:0 750\n"
    );
    // On the disk all of it is the user's own.
    let foreign =
        format!("find store/overlay -path '*/diff/*' ! -uid {USER_ID} -type f | head -n 3");
    assert_eq!(place.ok(&foreign), "");
    storage.remove_all();
    place.until_no_server();
    DONE
}

/// podman has the mount program show other owners instead of changing them all.
fn other_ids_in_the_container(place: &Place) -> Verdict {
    let storage = storage_or_skip!(place);
    storage.build();
    let said = storage.ok(
        "run --name one --uidmap 0:100:1000 --gidmap 0:100:1000 base /bin/sh -c \
         'stat -c %u:%g /two /lower/d/new; echo x >/mine; chown 7:8 /mine; stat -c %u:%g /mine'",
    );
    assert_eq!(said, "0:0\n7:8\n7:8\n");
    storage.remove_all();
    place.until_no_server();
    DONE
}

fn buildah_builds(place: &Place) -> Verdict {
    if !has("buildah") {
        return skip("buildah isn't installed");
    }
    let storage = storage_or_skip!(place);
    storage.ok(
        "printf 'FROM scratch\\nCOPY root /\\nRUN rm /lower/gone\\n' >ctx/Containerfile && \
                buildah bud -q --isolation chroot -t base ctx",
    );
    storage.ok("c=$(buildah from base) && buildah run --isolation chroot $c /bin/sh -c \
                'rm -r /lower/d && echo x >/lower/x' && buildah copy -q $c ctx/root/lower/gone /copied && \
                buildah commit -q $c three && buildah rm $c");
    assert_eq!(storage.ok("c=$(buildah from three) && buildah run --isolation chroot $c /bin/ls /lower /copied && \
                           buildah rm $c >/dev/null"), "/copied\n\n/lower:\nx\n");
    storage.ok("buildah rm -a && buildah rmi -af");
    storage.remove_all();
    place.until_no_server();
    DONE
}
