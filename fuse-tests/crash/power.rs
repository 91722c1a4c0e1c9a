//! The power fails, in two ways.
//!
//! The file system of the upper is shut down in the middle of the work, as xfstests does it:
//! nothing more reaches the disk, not even the journal's last transactions.
//!
//! Or the disk, which is ours, dies with any part of what wasn't flushed ([`Disk`]): the order in
//! which it was written means nothing then. That is what dm-log-writes and dm-flakey are for where
//! a machine has them.
//!
//! What the disk holds when it is mounted again is what a machine would find after the power came
//! back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::common::dice::{Dice, bytes};
use crate::common::{Limit, Tree, cases, getting_on, skip};

use super::disk::Disk;
use super::layers::left_in_work;

const IMAGES: Limit = Limit::Root("images are for the machine's root");

cases! {
    power_fails_on_ext4: IMAGES,
    power_fails_on_xfs: IMAGES,
    disk_loses_writes_on_ext4: IMAGES,
    disk_loses_writes_on_xfs: IMAGES,
    disk_loses_writes_on_btrfs: IMAGES,
}

const WRITERS: usize = 3;
/// Lower files of each writer in each round.
const FILES: usize = 40;

fn power_fails_on_ext4(t: &Tree) {
    power_fails(t, Power::Shutdown, &["mkfs.ext4", "-q"], 256);
}

fn power_fails_on_xfs(t: &Tree) {
    power_fails(t, Power::Shutdown, &["mkfs.xfs", "-q"], 320);
}

fn disk_loses_writes_on_ext4(t: &Tree) {
    power_fails(t, Power::Disk(None), &["mkfs.ext4", "-q"], 256);
}

fn disk_loses_writes_on_xfs(t: &Tree) {
    power_fails(t, Power::Disk(None), &["mkfs.xfs", "-q"], 320);
}

fn disk_loses_writes_on_btrfs(t: &Tree) {
    power_fails(t, Power::Disk(None), &["mkfs.btrfs", "-q"], 320);
}

/// What fails.
enum Power {
    Shutdown,
    /// The disk that stands now.
    Disk(Option<Disk>),
}

impl Power {
    /// What is to be mounted: the image, or the disk that has it.
    fn up(&mut self, t: &Tree, image: &Path) -> PathBuf {
        match self {
            Power::Shutdown => image.to_path_buf(),
            Power::Disk(now) => {
                let disk = Disk::serve(image, &t.beside("served"));
                let disk = disk.unwrap_or_else(|e| skip(format!("a disk of our own: {e}")));
                now.insert(disk).file().to_path_buf()
            }
        }
    }

    fn fail(&self, t: &Tree, dice: &mut Dice) {
        match self {
            Power::Shutdown => {
                let disk = File::open(t.disk()).unwrap();
                if let Err(error) = shutdown::shut_down(&disk) {
                    skip(format!("the file system can't be shut down: {error}"));
                }
            }
            Power::Disk(disk) => {
                let disk = disk.as_ref().expect("a disk");
                let (bytes, flushes) = disk.lose_power(dice).expect("writing the image");
                eprintln!("{bytes} bytes were not flushed, after {flushes} flushes");
            }
        }
    }

    /// Takes away what is left of it.
    fn down(&mut self, t: &Tree) {
        t.umount_disk();
        if let Power::Disk(disk) = self {
            *disk = None;
        }
    }
}

fn power_fails(t: &Tree, mut power: Power, mkfs: &[&str], megabytes: u64) {
    if t.carrier() == crate::common::Carrier::Kernel {
        skip("what survives is our promise");
    }
    let image = t.make_image(mkfs, megabytes);
    t.upper_on(&power.up(t, &image));
    let rounds = if super::thorough() { 12 } else { 4 };
    let seed = super::seed();
    let mut dice = Dice::new(seed);
    for round in 0..rounds {
        for writer in 0..WRITERS {
            for file in 0..FILES {
                let path = t.low(&place(round, writer, file));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, lower_data(file)).unwrap();
            }
        }
    }
    // That the upper layer is there at all is nobody's work here.
    rustix::fs::syncfs(File::open(t.disk()).unwrap()).unwrap();
    t.mount();
    let (mut copies, mut promises) = (0, 0);
    for round in 0..rounds {
        let label = format!("--seed {seed}, round {round}");
        let promised = work_until_the_power_fails(t, &power, round, &mut dice);
        // The server lives, whatever its disk says.
        let said = fs::read(t.at("no-such-file")).expect_err("there is no such file");
        assert!(
            said.raw_os_error() != Some(libc::ENOTCONN),
            "{label}: {said}"
        );
        kill_process(t.server(), Signal::KILL).unwrap();
        t.drop_dead_mount();
        power.down(t);
        mount_again(t, &power.up(t, &image), &label);
        let found = check(t, round, &promised, &label);
        eprintln!(
            "{label}: {found} files copied up, {} calls of fsync returned",
            promised.len()
        );
        copies += found;
        promises += promised.len();
        t.mount();
        assert_eq!(left_in_work(t), [""; 0], "{label}: not swept");
        check_merged(t, round, &label);
        getting_on();
    }
    assert!(
        copies > 0 && promises > 0,
        "{copies} copies, {promises} calls of fsync"
    );
    // Before its disk goes.
    t.finish();
}

/// A server of another test that is starting may hold the file system of before for a moment, and
/// xfs doesn't mount a second one with the same number.
fn mount_again(t: &Tree, image: &Path, label: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(why) = t.mount_image(image) {
        assert!(Instant::now() < end, "{label}: the disk again: {why}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn place(round: usize, writer: usize, file: usize) -> String {
    format!("r{round}/w{writer}/f{file}")
}

fn lower_data(file: usize) -> Vec<u8> {
    const SIZES: [usize; 6] = [1, 4096, 5000, 70_000, 300_000, 600_000];
    bytes(file as u64, SIZES[file % SIZES.len()])
}

/// What is appended to a file.
fn addition(writer: usize, file: usize) -> Vec<u8> {
    bytes((1_000_000 + writer * 1000 + file) as u64, 3000 + file * 100)
}

/// A file whose fsync returned.
struct Promise {
    path: String,
    data: Vec<u8>,
}

fn work_until_the_power_fails(
    t: &Tree,
    power: &Power,
    round: usize,
    dice: &mut Dice,
) -> Vec<Promise> {
    let delay = Duration::from_millis(5 + dice.roll(150) as u64);
    let mount = t.at("");
    let failing = AtomicBool::new(false);
    let promised = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (mount, failing) = (&mount, &failing);
                scope.spawn(move || {
                    let mut promised = Vec::new();
                    for file in 0..FILES {
                        match change(mount, round, writer, file) {
                            // What returns while the disk goes is no promise: without us too
                            // ext4 and xfs lose most of it.
                            Ok(_) if failing.load(Ordering::SeqCst) => break,
                            Ok(more) => promised.extend(more),
                            Err(_) => break,
                        }
                    }
                    promised
                })
            })
            .collect();
        thread::sleep(delay);
        failing.store(true, Ordering::SeqCst);
        power.fail(t, dice);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    promised.into_iter().flatten().collect()
}

/// Changes a file in one of three ways.
fn change(mount: &Path, round: usize, writer: usize, file: usize) -> io::Result<Option<Promise>> {
    let path = place(round, writer, file);
    let there = mount.join(&path);
    let added = addition(writer, file);
    match file % 4 {
        0 => {
            fs::set_permissions(there, fs::Permissions::from_mode(0o600))?;
            Ok(None)
        }
        1 => {
            OpenOptions::new()
                .append(true)
                .open(there)?
                .write_all(&added)?;
            Ok(None)
        }
        2 => {
            let mut open = OpenOptions::new().append(true).open(there)?;
            open.write_all(&added)?;
            open.sync_all()?;
            let data = [lower_data(file), added].concat();
            Ok(Some(Promise { path, data }))
        }
        _ => {
            // As editors do it.
            let scratch = mount.join(format!("{path}.new"));
            let mut open = File::create(&scratch)?;
            open.write_all(&added)?;
            open.sync_all()?;
            fs::rename(scratch, &there)?;
            File::open(there.parent().unwrap())?.sync_all()?;
            Ok(Some(Promise { path, data: added }))
        }
    }
}

/// Looks at the disk; how many files had been copied up.
fn check(t: &Tree, round: usize, promised: &[Promise], label: &str) -> usize {
    for promise in promised {
        let there = fs::read(t.upper(&promise.path));
        let there = there.unwrap_or_else(|e| panic!("{label}: {} was fsynced: {e}", promise.path));
        assert!(
            there == promise.data,
            "{label}: {} was fsynced, and is another",
            promise.path
        );
    }
    let mut found = 0;
    for writer in 0..WRITERS {
        for file in 0..FILES {
            let path = place(round, writer, file);
            let Ok(there) = fs::read(t.upper(&path)) else {
                continue;
            };
            found += 1;
            let (old, added) = (lower_data(file), addition(writer, file));
            // What was appended and not fsynced may be missing, or be zeros: ext4 may write a new
            // size before the data of a block that the file had already.
            let may_be_appended = |more: &[u8]| {
                let same = |(there, written): (&u8, &u8)| there == written || *there == 0;
                more.len() <= added.len() && more.iter().zip(&added).all(same)
            };
            let whole = match there.strip_prefix(&old[..]) {
                Some(more) => may_be_appended(more),
                None => file % 4 == 3 && there == added,
            };
            assert!(
                whole,
                "{label}: {path}: {} bytes; the first {} of the lower's {} are the same",
                there.len(),
                there.iter().zip(&old).take_while(|(a, b)| a == b).count(),
                old.len()
            );
        }
    }
    found
}

/// All names of the round are there and can be read.
fn check_merged(t: &Tree, round: usize, label: &str) {
    for writer in 0..WRITERS {
        for file in 0..FILES {
            let path = place(round, writer, file);
            let merged = fs::read(t.at(&path)).unwrap_or_else(|e| panic!("{label}: {path}: {e}"));
            let expected = match fs::read(t.upper(&path)) {
                Ok(upper) => upper,
                Err(_) => lower_data(file),
            };
            assert!(merged == expected, "{label}: {path} in the mount");
        }
    }
}

mod shutdown {
    //! The call that cuts a file system off its disk.
    #![allow(unsafe_code)] // ioctl(2) is called

    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// Shuts down the file system of `root`; the journal isn't written any more.
    pub(super) fn shut_down(root: &File) -> io::Result<()> {
        const NO_LOG_FLUSH: u32 = 2;
        // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one.
        let request = nix::request_code_read!(b'X', 125, size_of::<u32>());
        let flags = NO_LOG_FLUSH;
        // SAFETY: the kernel reads one u32 through the pointer, which outlives the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), request as _, &raw const flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
