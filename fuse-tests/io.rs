//! Data: reading, writing, holes, ranges, mappings, large files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::common::mmap::Mapping;
use crate::common::{Carrier, Limit, Tree, cases, fails, open_flags, open_rw, skip, stat};

cases! {
    read_lower_file_in_pieces,
    read_at_and_past_the_end,
    overwrite_in_the_middle,
    append_to_lower_file,
    append_from_two_descriptors,
    write_far_behind_the_end,
    overwrite_with_truncation,
    large_write_and_read_back,
    unaligned_writes_and_reads,
    sparse_lower_file_stays_sparse,
    hole_at_the_end_and_at_the_start,
    seek_data_and_hole_in_lower,
    seek_data_and_hole_in_upper,
    seek_errors,
    punch_a_hole,
    fallocate_grows_the_file,
    fallocate_keep_size,
    zero_range_and_collapse,
    fallocate_on_a_lower_file,
    copy_range_between_layers,
    copy_range_in_one_file,
    copy_range_between_file_systems,
    copy_range_of_less_than_blocks_by_direct_descriptors: Limit::Fuse("other file systems want whole blocks"),
    reflinks,
    file_over_four_gigabytes,
    map_shared_and_write,
    map_private_does_not_write,
    map_of_a_lower_file_reads_it,
    map_sees_writes,
    direct_reads_and_writes,
    data_sync,
    sync_of_a_directory,
    write_to_a_read_only_descriptor,
    read_a_directory,
    empty_file,
    written_data_is_in_upper_after_fsync,
    lower_file_is_not_touched_by_reading,
    reading_leaves_a_time_of_access_in_the_upper_alone,
    interleaved_readers_and_writers,
    sendfile_out_of_the_mount,
    executing_a_program,
    two_descriptors_see_one_file,
    preallocated_then_written_after_remount,
    vectored_io,
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

fn read_lower_file_in_pieces(t: &Tree) {
    let data = pattern(300_001, 1);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let mut file = File::open(t.at("f")).unwrap();
    let mut all: Vec<u8> = Vec::new();
    for size in [1, 4095, 4096, 4097, 65_536, 131_072, 131_073, 1 << 20] {
        let mut piece = vec![0; size];
        let got = file.read(&mut piece).unwrap();
        all.extend(&piece[..got]);
    }
    assert!(all == data, "data differs");
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn read_at_and_past_the_end(t: &Tree) {
    t.lower(&["f=abcdef"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    let mut buffer = [0; 10];
    for (offset, expected) in [(0, &b"abcdef"[..]), (4, b"ef"), (6, b""), (1_000_000, b"")] {
        let got = file.read_at(&mut buffer, offset).unwrap();
        assert_eq!(&buffer[..got], expected);
    }
}

fn overwrite_in_the_middle(t: &Tree) {
    let mut data = pattern(100_000, 2);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    open_rw(t.at("f")).write_all_at(b"CHANGED", 50_000).unwrap();
    data[50_000..50_007].copy_from_slice(b"CHANGED");
    assert!(fs::read(t.at("f")).unwrap() == data);
    t.remount();
    assert!(fs::read(t.at("f")).unwrap() == data);
}

fn append_to_lower_file(t: &Tree) {
    t.lower(&["f=one"]);
    t.mount();
    t.append("f", "two");
    t.append("f", "three");
    assert_eq!(t.read("f"), "onetwothree");
    assert_eq!(t.upper_sketch(), ["f=onetwothree"]);
}

fn append_from_two_descriptors(t: &Tree) {
    t.lower(&["f=0"]);
    t.mount();
    let open = || OpenOptions::new().append(true).open(t.at("f")).unwrap();
    let (mut a, mut b) = (open(), open());
    for _ in 0..3 {
        a.write_all(b"a").unwrap();
        b.write_all(b"b").unwrap();
    }
    assert_eq!(t.read("f"), "0ababab");
}

fn write_far_behind_the_end(t: &Tree) {
    t.lower(&["f=start"]);
    t.mount();
    open_rw(t.at("f")).write_all_at(b"end", 5_000_000).unwrap();
    let data = fs::read(t.at("f")).unwrap();
    assert_eq!(data.len(), 5_000_003);
    assert_eq!((&data[..5], &data[5_000_000..]), (&b"start"[..], &b"end"[..]));
    assert!(data[5..5_000_000].iter().all(|byte| *byte == 0));
    t.flush();
    assert!(stat(t.upper("f")).blocks() < 1000);
}

fn overwrite_with_truncation(t: &Tree) {
    t.lower(&["f=a long content"]);
    t.mount();
    t.write("f", "new");
    assert_eq!(t.read("f"), "new");
    assert_eq!(t.upper_sketch(), ["f=new"]);
    drop(File::create(t.at("f")).unwrap());
    assert_eq!(t.read("f"), "");
}

fn large_write_and_read_back(t: &Tree) {
    t.mount();
    let data = pattern(9_000_000, 3);
    fs::write(t.at("f"), &data).unwrap();
    assert!(fs::read(t.at("f")).unwrap() == data);
    t.remount();
    assert!(fs::read(t.at("f")).unwrap() == data);
    assert!(fs::read(t.upper("f")).unwrap() == data);
}

fn unaligned_writes_and_reads(t: &Tree) {
    let mut data = pattern(40_000, 4);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let file = open_rw(t.at("f"));
    for (i, offset) in [1, 4090, 4096, 8191, 12_289, 39_990, 39_995].into_iter().enumerate() {
        let piece = pattern(13 * (i + 1), 0x80 + i as u8);
        file.write_all_at(&piece, offset as u64).unwrap();
        let end = offset + piece.len();
        data.resize(data.len().max(end), 0);
        data[offset..end].copy_from_slice(&piece);
        assert!(fs::read(t.at("f")).unwrap() == data, "after the write at {offset}");
    }
    drop(file);
    t.remount();
    assert!(fs::read(t.at("f")).unwrap() == data);
}

const MIB: u64 = 1 << 20;

/// The kernel copies data in pieces of 1 MiB: so much of a hole may be filled on either side.
const SLACK: u64 = 2 * MIB / 512 + 64;

/// 64 MiB with 4 KiB of data at 16 MiB.
fn sparse(path: &std::path::Path) {
    let file = File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&pattern(4096, 9), 16 * MIB).unwrap();
}

fn sparse_lower_file_stays_sparse(t: &Tree) {
    sparse(&t.low("f"));
    let before = stat(t.low("f")).blocks();
    t.mount();
    open_rw(t.at("f")).write_all_at(b"x", 16 * MIB).unwrap();
    t.flush();
    let upper = stat(t.upper("f"));
    assert_eq!(upper.len(), 64 * MIB);
    assert!(upper.blocks() <= before + SLACK, "{} blocks, was {before}", upper.blocks());
}

fn hole_at_the_end_and_at_the_start(t: &Tree) {
    for (name, offset) in [("end", 0), ("start", 8 * MIB - 5)] {
        let file = File::create(t.low(name)).unwrap();
        file.write_all_at(b"12345", offset).unwrap();
        file.set_len(8 * MIB).unwrap();
    }
    t.mount();
    for name in ["end", "start"] {
        crate::common::chmod(t.at(name), 0o600);
        assert_eq!(stat(t.at(name)).len(), 8 * MIB);
        assert!(stat(t.upper(name)).blocks() <= SLACK, "{name}");
        assert!(fs::read(t.at(name)).unwrap() == fs::read(t.low(name)).unwrap(), "{name}");
    }
}

fn extents(file: &File) -> [Result<u64, Errno>; 5] {
    [
        seek(file, SeekFrom::Data(0)),
        seek(file, SeekFrom::Hole(0)),
        seek(file, SeekFrom::Data(16 * MIB + 5)),
        seek(file, SeekFrom::Hole(16 * MIB)),
        seek(file, SeekFrom::Data(17 * MIB)),
    ]
}

const SPARSE: [Result<u64, Errno>; 5] =
    [Ok(16 * MIB), Ok(0), Ok(16 * MIB + 5), Ok(16 * MIB + 4096), Err(Errno::NXIO)];

fn seek_data_and_hole_in_lower(t: &Tree) {
    sparse(&t.low("f"));
    t.mount();
    assert_eq!(extents(&File::open(t.at("f")).unwrap()), SPARSE);
}

fn seek_data_and_hole_in_upper(t: &Tree) {
    sparse(&t.low("f"));
    t.mount();
    crate::common::chmod(t.at("f"), 0o600);
    let copied = extents(&File::open(t.at("f")).unwrap());
    assert_eq!((copied[0], copied[1]), (SPARSE[0], SPARSE[1]));
    assert!((16 * MIB + 4096..=17 * MIB).contains(&copied[3].unwrap()), "{copied:?}");
    sparse(&t.at("new"));
    File::open(t.at("new")).unwrap().sync_all().unwrap();
    assert_eq!(extents(&File::open(t.at("new")).unwrap()), SPARSE);
}

fn seek_errors(t: &Tree) {
    t.lower(&["f=abc"]);
    t.mount();
    let mut file = File::open(t.at("f")).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(3)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(100)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(3));
    assert_eq!(file.seek(std::io::SeekFrom::End(-1)).unwrap(), 2);
    fails(file.seek(std::io::SeekFrom::Current(-5)), libc::EINVAL);
    assert_eq!(file.seek(std::io::SeekFrom::Start(77)).unwrap(), 77);
}

fn punch_a_hole(t: &Tree) {
    let data = pattern(64 * 1024, 5);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let file = open_rw(t.at("f"));
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(&file, flags, 8192, 16384);
    let mut expected = data;
    expected[8192..8192 + 16384].fill(0);
    assert!(fs::read(t.at("f")).unwrap() == expected);
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(8192));
    drop(file);
    t.remount();
    assert!(fs::read(t.at("f")).unwrap() == expected);
}

fn allocate(file: &File, flags: FallocateFlags, offset: u64, length: u64) {
    match fallocate(file, flags, offset, length) {
        Err(Errno::OPNOTSUPP) => skip("the layers' file system can't do this fallocate"),
        other => other.unwrap(),
    }
}

fn fallocate_grows_the_file(t: &Tree) {
    t.mount();
    t.write("f", "abc");
    let file = open_rw(t.at("f"));
    allocate(&file, FallocateFlags::empty(), 0, 100_000);
    assert_eq!(stat(t.at("f")).len(), 100_000);
    assert!(stat(t.at("f")).blocks() >= 100_000 / 512);
    assert_eq!(&t.read("f")[..4], "abc\0");
}

fn fallocate_keep_size(t: &Tree) {
    t.mount();
    t.write("f", "abc");
    allocate(&open_rw(t.at("f")), FallocateFlags::KEEP_SIZE, 0, 100_000);
    assert_eq!(stat(t.at("f")).len(), 3);
    assert_eq!(t.read("f"), "abc");
}

fn zero_range_and_collapse(t: &Tree) {
    if t.carrier() == Carrier::Fuse {
        skip("FUSE passes on only KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE");
    }
    let data = pattern(16 * 4096, 6);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let file = open_rw(t.at("f"));
    allocate(&file, FallocateFlags::ZERO_RANGE, 100, 5000);
    allocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    let mut expected = data;
    expected[100..5100].fill(0);
    assert!(fs::read(t.at("f")).unwrap() == expected[4096..]);
}

fn fallocate_on_a_lower_file(t: &Tree) {
    t.lower(&["f=abc"]);
    t.mount();
    allocate(&open_rw(t.at("f")), FallocateFlags::empty(), 0, 10_000);
    assert_eq!(stat(t.at("f")).len(), 10_000);
    assert_eq!(stat(t.low("f")).len(), 3);
    assert_eq!(stat(t.upper("f")).len(), 10_000);
}

fn copy_all(from: &File, to: &File) -> u64 {
    let mut copied = 0;
    loop {
        match copy_file_range(from, None, to, None, 1 << 20).unwrap() {
            0 => return copied,
            more => copied += more as u64,
        }
    }
}

fn copy_range_between_layers(t: &Tree) {
    let data = pattern(700_000, 7);
    fs::write(t.low("src"), &data).unwrap();
    t.lower(&["dst=old"]);
    t.mount();
    assert_eq!(copy_all(&File::open(t.at("src")).unwrap(), &open_rw(t.at("dst"))), 700_000);
    assert!(fs::read(t.at("dst")).unwrap() == data);
    let from = File::open(t.at("dst")).unwrap();
    assert_eq!(copy_all(&from, &File::create(t.at("third")).unwrap()), 700_000);
    assert!(fs::read(t.at("third")).unwrap() == data);
    drop(from);
    t.remount();
    assert!(fs::read(t.at("third")).unwrap() == data);
}

fn copy_range_in_one_file(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let file = open_rw(t.at("f"));
    let (mut from, mut to) = (0, 20);
    assert_eq!(copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 5).unwrap(), 5);
    assert_eq!(t.read("f"), format!("0123456789{}01234", "\0".repeat(10)));
}

fn copy_range_between_file_systems(t: &Tree) {
    t.lower(&["f=content"]);
    t.upper_on_a_disk_of("2m");
    t.mount();
    let (from, to) = (File::open(t.at("f")).unwrap(), File::create(t.at("new")).unwrap());
    let copied = copy_file_range(&from, None, &to, None, 7);
    match t.carrier() {
        Carrier::Kernel => assert_eq!(copied, Err(rustix::io::Errno::XDEV)),
        // The kernel's part of FUSE goes on by itself.
        Carrier::Fuse => assert_eq!((copied, t.read("new")), (Ok(7), "content".to_owned())),
    }
}

fn copy_range_of_less_than_blocks_by_direct_descriptors(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let Ok(from) = open_flags(t.at("f"), libc::O_DIRECT) else {
        skip("the layers' file system has no O_DIRECT");
    };
    let (mut start, mut end) = (1, 3);
    let to = File::create(t.at("g")).unwrap();
    assert_eq!(copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 5).unwrap(), 5);
    assert_eq!(t.read("g"), format!("{}12345", "\0".repeat(3)));
}

/// FUSE has none; programs copy then.
fn reflinks(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let (from, to) = (File::open(t.at("f")).unwrap(), File::create(t.at("g")).unwrap());
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Err(Errno::OPNOTSUPP) => {}
        result if t.carrier() == Carrier::Kernel => {
            result.unwrap();
            assert_eq!(t.read("g"), "F");
        }
        other => panic!("{other:?}"),
    }
    let copy = ["--reflink=auto".into(), t.at("f"), t.at("h")];
    assert!(std::process::Command::new("cp").args(copy).status().unwrap().success());
    assert_eq!(t.read("h"), "F");
}

fn file_over_four_gigabytes(t: &Tree) {
    const FAR: u64 = 5 << 30;
    let low = File::create(t.low("f")).unwrap();
    low.write_all_at(b"low", FAR).unwrap();
    t.mount();
    let file = open_rw(t.at("f"));
    let mut buffer = [0; 3];
    file.read_exact_at(&mut buffer, FAR).unwrap();
    assert_eq!(&buffer, b"low");
    file.write_all_at(b"upper", FAR + (1 << 30)).unwrap();
    assert_eq!(stat(t.at("f")).len(), FAR + (1 << 30) + 5);
    file.read_exact_at(&mut buffer, FAR).unwrap();
    assert_eq!(&buffer, b"low");
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), FAR);
    t.flush();
    assert!(stat(t.upper("f")).blocks() < 1000);
    file.set_len(FAR + 1).unwrap();
    assert_eq!(stat(t.at("f")).len(), FAR + 1);
}

fn map_shared_and_write(t: &Tree) {
    t.lower(&["f=mapped text"]);
    t.mount();
    let file = open_rw(t.at("f"));
    let map = Mapping::new(&file, 11, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    map.write(b"MAPPED");
    map.sync();
    assert_eq!(t.read("f"), "MAPPED text");
    drop((map, file));
    t.remount();
    assert_eq!(t.read("f"), "MAPPED text");
}

fn map_private_does_not_write(t: &Tree) {
    t.lower(&["f=mapped text"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    let map = Mapping::new(&file, 11, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    map.write(b"MINE");
    assert_eq!(map.read(), b"MINEed text");
    assert_eq!(t.read("f"), "mapped text");
    drop(map);
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn map_of_a_lower_file_reads_it(t: &Tree) {
    let data = pattern(200_000, 8);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        assert!(Mapping::new(&file, data.len(), libc::PROT_READ, flags).read() == data);
    }
}

fn map_sees_writes(t: &Tree) {
    t.mount();
    t.write("f", "before");
    let file = open_rw(t.at("f"));
    let map = Mapping::new(&file, 6, libc::PROT_READ, libc::MAP_SHARED);
    assert_eq!(map.read(), b"before");
    file.write_all_at(b"AFTER!", 0).unwrap();
    assert_eq!(map.read(), b"AFTER!");
}

fn direct_reads_and_writes(t: &Tree) {
    let data = pattern(16_384, 10);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let Ok(file) = open_flags(t.at("f"), libc::O_DIRECT) else {
        skip("the layers' file system has no O_DIRECT");
    };
    // O_DIRECT wants memory on a page's boundary: a mapping is.
    let memory = Mapping::new(&file, 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    assert!(memory.read() == data[..4096]);
    drop(memory);
    let status = std::process::Command::new("dd")
        .args(["bs=4096", "count=2", "oflag=direct", "conv=notrunc", "status=none"])
        .arg(format!("if={}", crate::common::text(&t.low("f"))))
        .arg(format!("of={}", crate::common::text(&t.at("new"))))
        .status()
        .unwrap();
    assert!(status.success());
    assert!(fs::read(t.at("new")).unwrap() == data[..8192]);
    let output = std::process::Command::new("dd")
        .args(["bs=4096", "iflag=direct", "status=none"])
        .arg(format!("if={}", crate::common::text(&t.at("f"))))
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout == data);
}

fn data_sync(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let mut file = OpenOptions::new().append(true).open(t.at("f")).unwrap();
    file.write_all(b"+").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(t.upper("f")).unwrap(), b"F+");
    let mut synced = OpenOptions::new().append(true).custom_flags(libc::O_SYNC).open(t.at("f"));
    synced.as_mut().unwrap().write_all(b"++").unwrap();
    assert_eq!(fs::read(t.upper("f")).unwrap(), b"F+++");
    File::open(t.at("f")).unwrap().sync_all().unwrap();
}

fn sync_of_a_directory(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    fs::create_dir(t.at("up")).unwrap();
    for name in ["", "d", "up"] {
        let dir = File::open(t.at(name)).unwrap();
        dir.sync_all().unwrap();
        dir.sync_data().unwrap();
    }
}

fn write_to_a_read_only_descriptor(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    fails(File::open(t.at("f")).unwrap().write(b"x"), libc::EBADF);
    let mut writer = OpenOptions::new().append(true).open(t.at("f")).unwrap();
    fails(writer.read(&mut [0; 1]), libc::EBADF);
}

fn read_a_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    fails(File::open(t.at("d")).unwrap().read(&mut [0; 1]), libc::EISDIR);
}

fn empty_file(t: &Tree) {
    t.lower(&["f="]);
    t.mount();
    assert_eq!(t.read("f"), "");
    crate::common::chmod(t.at("f"), 0o600);
    assert_eq!(t.read("f"), "");
    t.append("f", "no longer");
    assert_eq!(t.read("f"), "no longer");
}

fn written_data_is_in_upper_after_fsync(t: &Tree) {
    t.mount();
    let mut file = File::create(t.at("f")).unwrap();
    let data = pattern(200_000, 11);
    file.write_all(&data).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(t.upper("f")).unwrap() == data);
}

fn lower_file_is_not_touched_by_reading(t: &Tree) {
    t.lower(&["f=F"]);
    crate::common::set_times(&t.low("f"), (5, 0), (10, 0)).unwrap();
    t.mount();
    assert_eq!(t.read("f"), "F");
    assert_eq!(stat(t.low("f")).atime(), 5, "the access time of a lower file stays");
}

fn reading_leaves_a_time_of_access_in_the_upper_alone(t: &Tree) {
    // The harness looks through the lower layers, too.
    t.lowers_may_change();
    t.lower(&["f=F", "d/x=X", "link->f"]);
    t.upper_has(&["uf=F", "ud/x=X", "ulink->uf"]);
    let all = [t.low("f"), t.low("d"), t.low("link"), t.upper("uf"), t.upper("ud"), t.upper("ulink")];
    for path in &all {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 10, tv_nsec: 0 },
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    }
    t.mount();
    for (file, dir, link) in [("f", "d", "link"), ("uf", "ud", "ulink")] {
        assert_eq!(t.read(file), "F");
        assert_eq!(fs::read_dir(t.at(dir)).unwrap().count(), 1);
        assert!(fs::read_link(t.at(link)).is_ok());
    }
    let read = |path: &std::path::PathBuf| fs::symlink_metadata(path).unwrap().atime() != 5;
    assert_eq!(all.each_ref().map(read), [false, false, false, true, true, true]);
    let shown = ["f", "d", "link", "uf", "ud", "ulink"].map(|name| t.at(name));
    assert_eq!(shown.each_ref().map(read), [false, false, false, true, true, true]);
}

fn interleaved_readers_and_writers(t: &Tree) {
    fs::write(t.low("f"), vec![b'.'; 8192]).unwrap();
    t.mount();
    std::thread::scope(|scope| {
        for k in 0..4u8 {
            let path = t.at("f");
            scope.spawn(move || {
                let file = open_rw(&path);
                for i in 0..200u64 {
                    let offset = u64::from(k) * 2048 + i * 10;
                    file.write_all_at(&[b'a' + k; 10], offset).unwrap();
                    let mut back = [0; 10];
                    file.read_exact_at(&mut back, offset).unwrap();
                    assert_eq!(back, [b'a' + k; 10]);
                }
            });
        }
    });
    t.remount();
    let data = fs::read(t.at("f")).unwrap();
    for k in 0..4 {
        assert!(data[k * 2048..k * 2048 + 2000].iter().all(|byte| *byte == b'a' + k as u8));
    }
}

fn sendfile_out_of_the_mount(t: &Tree) {
    let data = pattern(150_000, 12);
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let out = File::create(t.beside("out")).unwrap();
    let from = File::open(t.at("f")).unwrap();
    let mut left = data.len();
    while left > 0 {
        left -= rustix::fs::sendfile(&out, &from, None, left).unwrap();
    }
    assert!(fs::read(t.beside("out")).unwrap() == data);
}

fn executing_a_program(t: &Tree) {
    // By another process: a descriptor of ours, open for writing, could be in a child of another
    // test's thread for a moment, and the program busy.
    let copy = |to| {
        let done = std::process::Command::new("cp").arg("/bin/true").arg(to).status();
        assert!(done.unwrap().success());
    };
    copy(t.low("low"));
    t.mount();
    copy(t.at("up"));
    for name in ["low", "up"] {
        assert!(std::process::Command::new(t.at(name)).status().unwrap().success(), "{name}");
    }
}

fn two_descriptors_see_one_file(t: &Tree) {
    t.lower(&["f=old"]);
    t.mount();
    let a = open_rw(t.at("f"));
    let b = open_rw(t.at("f"));
    a.write_all_at(b"A", 0).unwrap();
    b.write_all_at(b"B", 1).unwrap();
    let mut text = [0; 3];
    a.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"ABd");
    a.set_len(1).unwrap();
    assert_eq!(b.metadata().unwrap().len(), 1);
    assert_eq!(b.read_at(&mut text, 0).unwrap(), 1);
}

fn preallocated_then_written_after_remount(t: &Tree) {
    t.mount();
    let file = File::create(t.at("f")).unwrap();
    allocate(&file, FallocateFlags::empty(), 0, 20_000);
    drop(file);
    t.remount();
    open_rw(t.at("f")).write_all_at(b"x", 19_999).unwrap();
    assert_eq!(fs::read(t.at("f")).unwrap().len(), 20_000);
}

fn vectored_io(t: &Tree) {
    use std::io::{IoSlice, IoSliceMut};
    t.lower(&["f=abcdefgh"]);
    t.mount();
    let mut file = open_rw(t.at("f"));
    let (mut a, mut b) = ([0; 3], [0; 5]);
    let got = file.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap();
    assert_eq!((got, &a, &b), (8, b"abc", b"defgh"));
    file.rewind().unwrap();
    assert_eq!(file.write_vectored(&[IoSlice::new(b"12"), IoSlice::new(b"345")]).unwrap(), 5);
    assert_eq!(t.read("f"), "12345fgh");
}

