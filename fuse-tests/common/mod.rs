//! What the tests on real mounts stand on.

mod calls;
pub(crate) mod dice;
mod dotted;
pub(crate) mod filter;
pub(crate) mod leftovers;
mod machine;
pub(crate) mod mmap;
mod older;
mod plant;
pub(crate) mod refuse;
pub(crate) mod release;
mod skip;
mod snapshot;
pub(crate) mod suite;
mod tree;
mod users;
mod watch;

pub(crate) use calls::*;
pub(crate) use machine::{Upper, is_real_root};
pub(crate) use plant::{names, plant, sketch};
pub(crate) use skip::skip;
pub(crate) use snapshot::{Node, Snapshot};
pub(crate) use suite::{Case, Limit, getting_on};
pub(crate) use tree::{Carrier, Tree};

/// The table of a module's tests: `name`, or `name: Limit::…("why")` for one that can't run on
/// every variant.
macro_rules! cases {
    ($($name:ident $(: $limit:expr)?),* $(,)?) => {
        pub(crate) const CASES: &[crate::common::Case] = &[$(crate::common::Case {
            name: stringify!($name),
            run: $name,
            limit: cases!(@limit $($limit)?),
        }),*];
    };
    (@limit) => { crate::common::Limit::Everywhere };
    (@limit $limit:expr) => { $limit };
}
pub(crate) use cases;
