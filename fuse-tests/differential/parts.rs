//! The usual mixture: which share of a run is done in which manner.

use super::layers::Power;
use super::manner::Manner;
use super::place::Place;

/// One process's share.
pub(crate) struct Part {
    pub(crate) manner: Manner,
    /// In hundredths of the run.
    pub(crate) share: usize,
}

/// Every option at once.
const ALL_OPTIONS: &str = "redirect_dir=on,metacopy=on,index=on";

/// Each manner with its share.
#[rustfmt::skip]
const MIXTURE: [(usize, Power, Place, &str, bool); 16] = [
    (12, Power::Root, Place::Ext4, "", false),
    (20, Power::User, Place::Ext4, "", false),
    (6, Power::Root, Place::Tmpfs, "", false),
    (10, Power::User, Place::Tmpfs, "", false),
    (6, Power::Root, Place::Xfs, "", false),
    (4, Power::User, Place::Xfs, "", false),
    (6, Power::Root, Place::Btrfs, "", false),
    (4, Power::User, Place::Btrfs, "", false),
    (6, Power::Root, Place::Mixed, "", false),
    (6, Power::User, Place::Mixed, "", false),
    (4, Power::Root, Place::Ext4, "redirect_dir=on", false),
    (4, Power::Root, Place::Xfs, "redirect_dir=on,metacopy=on", false),
    (3, Power::Root, Place::Ext4, "index=on", false),
    (4, Power::Root, Place::Ext4, ALL_OPTIONS, false),
    (2, Power::Root, Place::Btrfs, ALL_OPTIONS, false),
    (3, Power::Root, Place::Ext4, "", true),
];

/// The usual mixture.
pub(crate) fn mixture() -> Vec<Part> {
    let part = |(share, power, place, options, drop_caches): (usize, _, _, &str, _)| Part {
        manner: Manner {
            options: options.to_owned(),
            drop_caches,
            ..Manner::new(power, place)
        },
        share,
    };
    let usual = MIXTURE.into_iter().map(part);
    // Beside the hundred: overfall's side in the fallback form.
    let dotted = [(Power::Root, Place::Ext4), (Power::User, Place::Tmpfs)];
    let dotted = dotted.map(|(power, place)| Part {
        manner: Manner {
            dotted: true,
            ..Manner::new(power, place)
        },
        share: 5,
    });
    usual.chain(dotted).collect()
}
