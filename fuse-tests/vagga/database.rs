//! A database's directory as a snapshot: Debian's PostgreSQL, started twice at once.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::project::{Project, eventually, skip};

const YAML: &str = "
containers:
  base: {}
  app:
    setup:
    - !Container base
    - !Sh mkdir -p /var/lib/pg; chown 5:5 /var/lib/pg; chmod 700 /var/lib/pg
    - !RunAs {user-id: 5, group-id: 5, script: 'BIN/initdb --no-sync --wal-segsize=1 -A trust -D /var/lib/pg >/dev/null'}
    volumes: {/var/lib/pg: !Snapshot {size: 200Mi}}
  look: {}
";

/// Copies of what the server and its tools need.
const SERVER: &str = "
  mkdir -p $R/BIN $R/usr/share $R/usr/lib/postgresql $R/lib64
  cp BIN/postgres BIN/initdb BIN/psql $R/BIN/
  cp -r /usr/share/postgresql $R/usr/share/; cp -r BIN/../lib $R/BIN/..
  for lib in $(ldd BIN/postgres BIN/initdb BIN/psql | grep -o '/[^ ]*' | grep '\\.so' | sort -u); do
    mkdir -p $R$(dirname $lib); cp -L $lib $R$lib
  done
  echo 'pg:x:5:5::/:/bin/sh' > $R/etc/passwd; echo 'pg:x:5:' > $R/etc/group
  ln -s busybox $R/bin/su; ln -s busybox $R/bin/seq; ln -s busybox $R/bin/md5sum; ln -s busybox $R/bin/sort
  ln -s busybox $R/bin/xargs";

/// Where Debian has the newest of them.
fn binaries() -> Option<String> {
    let mut found: Vec<String> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin").display().to_string())
        .filter(|bin| std::path::Path::new(bin).join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

pub(crate) fn a_database_is_started_twice_at_once(project: &Project) {
    let Some(bin) = binaries() else {
        skip("PostgreSQL is not installed (Debian's package is postgresql)");
    };
    let put = |text: &str| text.replace("BIN", &bin);
    project.write("vagga.yaml", &put(YAML));
    project.built_by_vagga("base", &put(SERVER));
    project.sh("chmod 777 .").good();
    project.build(&[], "app").good();
    // The same tree without the volume, to look at it.
    project
        .sh("ln -s $(readlink .vagga/app) .vagga/look")
        .good();
    let look = || {
        let script = "cd /var/lib/pg; find . | sort; find . -type f | sort | xargs md5sum";
        project.vagga(&["_run", "look", "sh", "-c", script]).good()
    };
    let before = look();
    assert!(before.contains("PG_VERSION"), "{before}");

    let serve = |name: &str, rows: u32| {
        put(&format!(
            "cat > /tmp/serve <<'END'
set -e
BIN/postgres -D /var/lib/pg -k /tmp -c listen_addresses= -c shared_buffers=4MB >/tmp/log 2>&1 &
ask() {{ BIN/psql -h /tmp -d postgres -Atqc \"$1\"; }}
for i in $(seq 300); do ask 'select 1' >/dev/null 2>&1 && break; sleep 0.1; done
ask 'create table t (x int)'; ask 'insert into t select generate_series(1, {rows})'
touch /work/{name}.ready
while ! test -e /work/{name}.go; do sleep 0.05; done
ask 'insert into t values (0)'; ask 'select count(*) from t'
END
chmod 644 /tmp/serve; su pg -c 'sh /tmp/serve' || (cat /tmp/log; exit 1)"
        ))
    };
    let mut one = project.start(&[], &serve("one", 1000));
    let two = project.start(&["-W"], &serve("two", 2000));
    eventually("both have written", || {
        project.exists("one.ready") && project.exists("two.ready")
    });
    kill(Pid::from_raw(one.id().cast_signed()), Signal::SIGKILL).unwrap();
    one.wait().unwrap();
    project.write("two.go", "");
    let output = two.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "2001\n",
        "{output:?}"
    );
    project.nothing_is_left();
    assert_eq!(look(), before);
}
