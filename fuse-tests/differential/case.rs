//! One case: layers and steps, and what becomes of them on both sides.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::compare::{self, Pairs, differences};
use super::dotted;
use super::execute::{Hands, Outcome};
use super::heirs;
use super::indexed;
use super::known::{self, Met, Then};
use super::layers::{self, Entry, Kind, Layer, Power};
use super::look::{self, Tree, shown};
use super::manner::Manner;
use super::ops::{self, On, Op, SLOTS, Step, is_link, name_of, objects};
use super::place::Place;
use super::random::Random;
use super::script;
use super::side::{self, Carrier, Mounted};

/// How long a case may take before overfall's mount is torn down under it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The class of what ends a case without being a finding.
const ENDED: &str = "ended";

/// Layers and steps.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) manner: Manner,
    /// Where the upper and each lower layer lie, if not beside the mount.
    homes: Vec<PathBuf>,
    pub(crate) lowers: usize,
    pub(crate) entries: Vec<Entry>,
    /// Changes that the kernel's overlay has made to the topmost lower layer before.
    pub(crate) heirs: Vec<Step>,
    pub(crate) steps: Vec<Step>,
    /// Whether every step's objects are looked at after it; caches are warmer then.
    pub(crate) nosy: bool,
}

/// Something that isn't as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    /// What kind of thing it is: shrinking keeps to it.
    pub(crate) class: String,
    /// The step that showed it, if one did.
    pub(crate) step: Option<usize>,
    pub(crate) text: String,
}

/// How often each known difference was met.
pub(crate) type Tally = BTreeMap<&'static str, usize>;

impl Case {
    /// The case of a seed. What is elsewhere is there for layers.
    pub(crate) fn generate(
        seed: u64,
        manner: &Manner,
        steps: usize,
        elsewhere: &[PathBuf],
    ) -> Self {
        let mut random = Random::new(seed);
        let lowers = 1 + random.below(4);
        let mut entries = layers::generate(&mut random, manner.power, lowers);
        if matches!(manner.place, Place::Mixed | Place::Tmp) {
            let all = entries.iter_mut();
            all.for_each(|entry| entry.flags = rustix::fs::IFlags::empty());
        }
        if manner.dotted {
            // An upper that isn't begun in the fallback form isn't continued in it.
            entries.retain(|entry| entry.layer != Layer::Upper);
        }
        let steps = script::generate(&mut random, manner.power, &entries, steps);
        let mut case = Self {
            manner: manner.clone(),
            homes: Vec::new(),
            lowers,
            entries,
            heirs: Vec::new(),
            steps,
            nosy: random.percent(50),
        };
        case.part_privileges(random.percent(50));
        // With other numbers, so that the rest is the same in every manner.
        let mut random = Random::new(!seed);
        if !elsewhere.is_empty() {
            let one = |_| {
                random
                    .choose(elsewhere)
                    .join(format!("layers-{}-{seed}", std::process::id()))
            };
            case.homes = (0..=lowers).map(one).collect();
        }
        let usual = manner.options.is_empty();
        // What is planted in the upper has its marks by the layers as they are planted.
        let bare = case.entries.iter().all(|entry| entry.layer != Layer::Upper);
        if lowers > 1 && bare && random.percent(if usual { 15 } else { 60 }) {
            case.heirs = heirs::generate(&mut random, manner.power, &case.entries);
        }
        if manner.drop_caches {
            case.forget_now_and_then(&mut random);
        }
        case
    }

    fn forget_now_and_then(&mut self, random: &mut Random) {
        let forget = Step {
            uid: 0,
            umask: 0o022,
            op: Op::DropCaches,
        };
        let steps = std::mem::take(&mut self.steps);
        for step in steps {
            if random.percent(8) {
                self.steps.push(forget.clone());
            }
            self.steps.push(step);
        }
    }

    /// As a short text.
    pub(crate) fn script(&self) -> String {
        let mut text = format!(
            "  {} lower layers{}\n",
            self.lowers,
            if self.nosy {
                ", looked at after each step"
            } else {
                ""
            }
        );
        for entry in &self.entries {
            let place = match entry.layer {
                Layer::Upper => "upper".to_owned(),
                Layer::Lower(index) => format!("lower {index}"),
            };
            let xattrs: Vec<_> = entry
                .xattrs
                .iter()
                .map(|(name, value)| format!(" {name}={}", look::digest(value)))
                .collect();
            let _ = writeln!(
                text,
                "  {place}: /{} {:?} {:o} {}:{}{}{}",
                shown(&entry.path),
                entry.kind,
                entry.mode,
                entry.owner.0,
                entry.owner.1,
                xattrs.concat(),
                match entry.flags.is_empty() {
                    true => String::new(),
                    false => format!(" {:?}", entry.flags),
                }
            );
        }
        let heirs = self.heirs.iter().map(|step| ("  lower 0, before: ", step));
        for (when, step) in heirs.chain(self.steps.iter().map(|step| ("  ", step))) {
            let _ = write!(text, "{when}{:?}", step.op);
            if step.uid != 0 {
                let _ = write!(text, " by {}", step.uid);
            }
            if step.umask != 0o022 {
                let _ = write!(text, " umask {:03o}", step.umask);
            }
            text.push('\n');
        }
        text
    }

    /// Runs it in `dir`, which is made and removed.
    pub(crate) fn run(&self, dir: &Path, tally: &mut Tally) -> Result<(), Finding> {
        fs::create_dir(dir).map_err(|error| plain("setup", error))?;
        let sides = [dir.join("k"), dir.join("o")];
        let (dismissed, wait) = mpsc::channel::<()>();
        let target = sides[1].join("m");
        let watchdog = std::thread::spawn(move || {
            let stuck = wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
            if stuck {
                side::abandon(&target);
            }
            stuck
        });
        let mut result = self.compare(&sides, tally);
        if result.as_ref().is_err_and(|finding| finding.class == ENDED) {
            result = Ok(());
        }
        drop(dismissed);
        if watchdog.join().unwrap_or(true) {
            let text = result.err().map(|finding| finding.text).unwrap_or_default();
            result = Err(plain(
                "stuck",
                format!("took too long, the mount was torn down; {text}"),
            ));
        }
        for side in &sides {
            side::abandon(&side.join("m"));
            let _ = fs::set_permissions(side.join("w/work"), fs::Permissions::from_mode(0o700));
            if self.protects() {
                let lowers = (0..self.lowers).map(|index| format!("l{index}"));
                for layer in lowers.chain(["u".to_owned(), "w".to_owned()]) {
                    side::unprotect(&side.join(layer));
                }
            }
        }
        for dir in self.homes.iter().map(|home| &**home).chain([dir]) {
            if let Err(error) = fs::remove_dir_all(dir)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("removing {}: {error}", dir.display());
            }
        }
        result
    }

    fn compare(&self, sides: &[PathBuf; 2], tally: &mut Tally) -> Result<(), Finding> {
        let ours = match self.manner.dotted {
            true => Carrier::Dotted,
            false => Carrier::Overfall,
        };
        let carriers = [Carrier::Kernel, ours];
        for side in sides {
            layers::build(
                side,
                self.manner.power,
                self.lowers,
                &self.entries,
                &self.homes,
            )
            .map_err(|error| plain("setup", error))?;
            if !self.heirs.is_empty() {
                heirs::bequeath(side, &self.manner, self.lowers, &self.heirs)
                    .map_err(|error| plain("setup", error))?;
            }
        }
        let before = self.lower_trees(&sides[1])?;
        let mount = |side: usize, by| {
            Mounted::new(&sides[side], by, &self.manner, self.lowers).map_err(|e| plain("mount", e))
        };
        let mounts = [mount(0, carriers[0])?, mount(1, carriers[1])?];
        let mut pairs = Pairs::default();
        pairs.forgetful = self.manner.power == Power::User;
        let show = |mount: &Mounted| {
            let tree = look::tree(&mount.root(), &look::plainly);
            let mut tree = tree.map_err(|error| plain("tree", error))?;
            if self.has_lower_links() {
                let nodes = tree.values_mut();
                nodes.for_each(|node| node.lines.retain(|line| line != look::OTHER_NUMBER_OF_FILE));
            }
            if self.may_copy_other_names() {
                for line in tree.values_mut().flat_map(|node| &mut node.lines) {
                    *line = compare::without_links_of_directories(line);
                }
            }
            Ok(tree)
        };
        {
            let mut hands = [
                Hands::new(mounts[0].root(), &self.manner),
                Hands::new(mounts[1].root(), &self.manner),
            ];
            for (index, step) in self.steps.iter().enumerate() {
                let finding = |finding: Finding| Finding {
                    step: Some(index),
                    ..finding
                };
                self.step(step, &mut hands, &mut pairs, tally)
                    .map_err(finding)?;
                if self.nosy && index % 25 == 24 {
                    let trees = [show(&mounts[0])?, show(&mounts[1])?];
                    self.same("tree", &trees, &mut pairs).map_err(finding)?;
                }
            }
        }
        let trees = [show(&mounts[0])?, show(&mounts[1])?];
        self.same("tree", &trees, &mut pairs)?;
        for mount in mounts {
            mount.unmount().map_err(|error| plain("unmount", error))?;
        }
        if self.manner.dotted {
            let mounted = mount(1, ours)?;
            let again = show(&mounted)?;
            let (before, again) = (("before", &trees[1]), ("mounted again", &again));
            report("remount", differences(before, again))?;
            mounted.unmount().map_err(|error| plain("unmount", error))?;
            dotted::upgrade(&sides[1], &self.manner, self.lowers)
                .map_err(|error| plain("upgrade", error))?;
        }
        let after = self.lower_trees(&sides[1])?;
        for (before, after) in before.iter().zip(&after) {
            report("lower", differences(("before", before), ("after", after)))?;
        }
        let indexed = self.manner.has("index=on");
        report("work", compare::leftovers(&sides[1], indexed))?;
        let upper = |side: usize| {
            compare::upper(&sides[side].join("u"), self.manner.power)
                .map_err(|error| plain("upper", error))
        };
        let (mut theirs, mut ours) = (upper(0)?, upper(1)?);
        compare::forgive_marks(&mut theirs, &mut ours, self.manner.power, pairs.in_vain);
        // A redirected directory's lower names are elsewhere.
        let redirects = self.manner.has("redirect_dir=on") || self.manner.has("metacopy=on");
        if !redirects && self.plants_no_whiteouts() {
            report("upper", compare::needless_whiteouts(&ours, &after))?;
        }
        let mut uppers = [theirs, ours];
        if indexed {
            let power = self.manner.power;
            let other_names = self.may_copy_other_names();
            let index = |side: &PathBuf| {
                indexed::read(&side.join("w/index"), power).map_err(|error| plain("index", error))
            };
            let indexes = [index(&sides[0])?, index(&sides[1])?];
            let objects = |index| indexed::objects(index, power, other_names);
            let (theirs, ours) = (objects(&indexes[0]), objects(&indexes[1]));
            if theirs != ours {
                let text = format!("index:\n    kernel: {theirs:#?}\n    overfall: {ours:#?}");
                return Err(plain("index", text));
            }
            if other_names {
                uppers = indexed::comparable(&uppers, &indexes, power);
            }
        }
        let (theirs, ours) = (("kernel", &uppers[0]), ("overfall", &uppers[1]));
        report("upper", differences(theirs, ours))?;
        report("upper", compare::unlike_links(theirs, ours))?;
        for (side, by) in [(1, Carrier::Kernel), (0, Carrier::Overfall)] {
            let mounted = mount(side, by)?;
            let again = show(&mounted)?;
            let label = format!("{}'s upper mounted by {}", carriers[side].name(), by.name());
            let (before, again) = (("before", &trees[side]), (&*label, &again));
            report("remount", differences(before, again))?;
            if !pairs.blind {
                report("remount", compare::unlike_links(before, again))?;
            }
            mounted.unmount().map_err(|error| plain("unmount", error))?;
        }
        Ok(())
    }

    fn step(
        &self,
        step: &Step,
        hands: &mut [Hands; 2],
        pairs: &mut Pairs,
        tally: &mut Tally,
    ) -> Result<(), Finding> {
        pairs.part(&hands[0].parting(&step.op), &hands[1].parting(&step.op));
        let [kernel, overfall] = hands;
        self.agree(step, kernel, overfall, pairs, tally, &name_of(&step.op))?;
        if self.nosy {
            for on in objects(&step.op) {
                let step = Step {
                    uid: 0,
                    umask: 0o022,
                    op: Op::Stat { on, follow: false },
                };
                let class = format!("Stat after {}", name_of(&step.op));
                self.agree(&step, kernel, overfall, pairs, tally, &class)?;
            }
        }
        Ok(())
    }

    fn agree(
        &self,
        step: &Step,
        kernel: &mut Hands,
        overfall: &mut Hands,
        pairs: &mut Pairs,
        tally: &mut Tally,
        class: &str,
    ) -> Result<(), Finding> {
        let (mut theirs, mut ours): (Outcome, Outcome) =
            (kernel.execute(step), overfall.execute(step));
        if self.may_copy_other_names() {
            for outcome in [&mut theirs, &mut ours] {
                if let Ok(text) = &mut outcome.result {
                    *text = compare::without_links_of_directories(text);
                }
            }
        }
        if self.has_lower_links()
            && let (Op::Readdir { .. }, Ok(text)) = (&step.op, &mut ours.result)
        {
            *text = text.replace(look::OTHER_NUMBER_OF_FILE, "");
        }
        if theirs.result != ours.result {
            let met = Met {
                manner: &self.manner,
                step,
                kernel: &theirs,
                overfall: &ours,
                protects: self.protects(),
            };
            if let Some(known) = known::find(&met) {
                *tally.entry(known.why).or_default() += 1;
                pairs.in_vain |= known.then == Then::Close;
                if known.then == Then::End {
                    return Err(plain(ENDED, known.why));
                }
                if known.then == Then::Close {
                    for slot in 0..SLOTS {
                        let op = Op::Close { slot };
                        pairs.part(&kernel.parting(&op), &overfall.parting(&op));
                        let step = Step { op, ..*step };
                        kernel.execute(&step);
                        overfall.execute(&step);
                    }
                }
                return Ok(());
            }
            let text = format!(
                "{:?} by {}\n    kernel:   {}\n    overfall: {}",
                step.op,
                step.uid,
                theirs.show(),
                ours.show()
            );
            return Err(plain(class, text));
        }
        if is_link(&step.op) && self.manner.power == Power::User && ours.result.is_ok() {
            pairs.blind = true;
        }
        if let (Some(theirs), Some(ours), Op::Stat { on, .. }) =
            (theirs.identity, ours.identity, &step.op)
        {
            let path = match on {
                On::Path(path) => path.clone(),
                On::Slot(slot) => PathBuf::from(format!("(descriptor {slot})")),
            };
            report("st_ino", Vec::from_iter(pairs.meet(&path, theirs, ours)))?;
        }
        Ok(())
    }

    fn same(&self, class: &str, trees: &[Tree; 2], pairs: &mut Pairs) -> Result<(), Finding> {
        let [kernel, overfall] = trees;
        let (theirs, ours) = (("kernel", kernel), ("overfall", overfall));
        report(class, differences(theirs, ours))?;
        let slack = compare::slack(self.manner.place);
        report("holes", compare::lost_holes(kernel, overfall, slack))?;
        if !pairs.blind {
            report("links", compare::unlike_links(theirs, ours))?;
        }
        report("st_ino", pairs.meet_all(kernel, overfall))
    }

    /// Whether another name than the kernel's may be copied up, as `known.rs` says of indexes.
    fn may_copy_other_names(&self) -> bool {
        self.manner.has("index=on") && self.has_lower_links()
    }

    /// Whether something is append-only or immutable, or made so.
    fn protects(&self) -> bool {
        let protects = |step: &Step| match &step.op {
            Op::Flags {
                set: Some(flags), ..
            } => flags & ops::PROTECTING != 0,
            _ => false,
        };
        let is_protected = |entry: &Entry| entry.flags.intersects(layers::PROTECTING);
        self.steps.iter().any(protects) || self.entries.iter().any(is_protected)
    }

    fn plants_no_whiteouts(&self) -> bool {
        let planted = |entry: &Entry| entry.layer == Layer::Upper && entry.kind == Kind::Whiteout;
        !self.entries.iter().any(planted)
    }

    /// Whether there may be files whose node has another number than `stat` shows; see `known.rs`.
    fn has_lower_links(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.kind, Kind::HardLink(_)))
            || self.heirs.iter().any(|step| is_link(&step.op))
    }

    fn lower_trees(&self, side: &Path) -> Result<Vec<Tree>, Finding> {
        (0..self.lowers)
            .map(|index| {
                look::tree(&Layer::Lower(index).dir(side), &look::plainly)
                    .map_err(|error| plain("setup", error))
            })
            .collect()
    }
}

fn plain(class: &str, text: impl std::fmt::Display) -> Finding {
    Finding {
        class: class.to_owned(),
        step: None,
        text: text.to_string(),
    }
}

fn report(class: &str, lines: Vec<String>) -> Result<(), Finding> {
    if lines.is_empty() {
        return Ok(());
    }
    Err(plain(
        class,
        format!("{class}:\n    {}", lines.join("\n    ")),
    ))
}
