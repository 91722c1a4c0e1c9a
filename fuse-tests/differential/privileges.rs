//! Setuid and setgid, which FUSE can't always tell from other things.

use std::path::PathBuf;

use super::case::Case;
use super::layers::{self, Power};
use super::ops::{self, On, Op, Step, is_link};

impl Case {
    /// Leaves out either setuid and setgid or what deals otherwise with them; `known.rs` says why.
    pub(super) fn part_privileges(&mut self, keep: bool) {
        if keep {
            let root = self.manner.power == Power::Root;
            for step in &mut self.steps {
                let leave = match &step.op {
                    Op::Map { .. } => root,
                    Op::Setxattr { name, .. } => *name != "security.capability",
                    Op::Fallocate { mode, .. } => mode & ops::MOVING == 0,
                    Op::Clone { .. } => false,
                    op if is_link(op) => root,
                    _ => true,
                };
                if !leave {
                    step.op = nothing();
                }
            }
            return;
        }
        for entry in &mut self.entries {
            entry.mode &= 0o1777;
        }
        let maps = |step: &Step| matches!(step.op, Op::Map { .. });
        let maps = self.steps.iter().any(maps);
        for step in &mut self.steps {
            if maps
                && matches!(&step.op, Op::Setxattr { name, .. } if *name == "security.capability")
            {
                step.op = nothing();
            }
            if step.uid == layers::USERS[2] {
                step.uid = layers::IN_ANOTHER_GROUP;
            }
            match &mut step.op {
                Op::Open { mode, .. }
                | Op::Chmod { mode, .. }
                | Op::Mkdir { mode, .. }
                | Op::Mknod { mode, .. } => *mode &= 0o1777,
                _ => {}
            }
        }
    }
}

fn nothing() -> Op {
    Op::Readdir {
        on: On::Path(PathBuf::from(".")),
        room: 8192,
    }
}
