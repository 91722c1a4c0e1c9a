//! Look-up where attributes may name another place: redirected directories, metadata copies and
//! their data.
//!
//! A directory's `redirect` names what it merges with in the layers below: a name in the same
//! directory, or a path from the layer's root. On the way along such a path further redirects
//! count, for the layers below theirs.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Stat;

use super::descriptors::OpenFile;
use super::layer::{LayerIndex, RealDir};
use super::lookup::{DirLayer, Found, LowerAt, Source, is_dir};
use super::metacopy::DataPlace;
use super::node::{DirPart, Node};
use super::types::{Fault, FileKind};
use super::{Outcome, Union};
use crate::format::redirect::Redirect;
use crate::format::{MAY_HOLD_XATTR_WHITEOUTS, OPAQUE};
use crate::options::{Options, RedirectDir, Switch, Xino};
use crate::sys::{Errno, xattr};

/// Which attributes lead elsewhere, and the layers to which they lead.
#[derive(Debug)]
pub(super) struct Follow {
    /// Whether redirects are followed.
    pub(super) redirects: bool,
    /// Whether a renamed directory gets one.
    pub(super) makes_redirects: bool,
    /// Whether metadata copies are followed, and made.
    pub(super) metacopy: bool,
    /// Whether nobody may count on changing the layers while they aren't mounted.
    pub(super) layers_are_fixed: bool,
    /// The lower layers' roots, from the top.
    pub(super) roots: Vec<Arc<RealDir>>,
    /// The roots of the layers that only hold data.
    pub(super) data: Vec<Arc<RealDir>>,
    /// Whether a lower object was seen in two places.
    pub(super) doubled: AtomicBool,
}

impl Follow {
    pub(super) fn new(
        options: &Options,
        by_default: bool,
        roots: Vec<Arc<RealDir>>,
        data: Vec<Arc<RealDir>>,
    ) -> Self {
        let metacopy = options.metacopy == Some(Switch::On);
        let makes_redirects = metacopy || options.redirect_dir == Some(RedirectDir::On);
        let redirects = match options.redirect_dir {
            Some(RedirectDir::On | RedirectDir::Follow) => true,
            Some(RedirectDir::NoFollow) => false,
            Some(RedirectDir::Off) | None => by_default || metacopy,
        };
        Self {
            redirects,
            makes_redirects,
            metacopy,
            layers_are_fixed: makes_redirects
                || options.xino == Some(Xino::On)
                || options.index == Some(Switch::On),
            roots,
            data,
            doubled: AtomicBool::new(false),
        }
    }

    /// Whether a look-up has to read what attributes say.
    pub(super) fn is_on(&self) -> bool {
        self.redirects || self.metacopy || !self.data.is_empty()
    }
}

/// What is looked for in the next layer.
#[derive(Debug)]
enum Wanted<'n> {
    /// A name in the directories that are merged.
    Name(Cow<'n, OsStr>),
    /// A path from the layer's root.
    Path(Vec<OsString>),
}

/// A search through the layers, from the top.
struct Search<'n> {
    union: &'n Union,
    wanted: Wanted<'n>,
    /// A redirect has been met.
    redirected: bool,
    /// The last redirect that was looked for was there, and absolute.
    absolute: bool,
    /// What was found is a directory.
    is_dir: bool,
    /// What was found last is a metadata copy.
    metacopy: bool,
    /// The layers below don't count.
    stop: bool,
    /// There are none that could.
    last: bool,
}

/// What one layer has.
struct Hit<'n> {
    parent: Arc<RealDir>,
    name: Cow<'n, OsStr>,
    stat: Stat,
    opened: Option<Arc<OpenFile>>,
}

impl Union {
    /// As [`Union::find`], following what attributes say.
    pub(super) fn find_following(&self, dir: &DirPart, name: &OsStr) -> Outcome<Option<Found>> {
        let follow = &self.follow;
        let looks = follow.redirects || !follow.data.is_empty();
        let mut search = Search {
            union: self,
            wanted: Wanted::Name(Cow::Borrowed(name)),
            redirected: false,
            absolute: false,
            is_dir: false,
            metacopy: false,
            stop: false,
            last: !looks && dir.lowers.is_empty(),
        };
        let mut upper = None;
        if let Some(real) = dir.upper.get() {
            upper = search.layer(real)?;
        }
        let upper_is_metacopy = upper.is_some() && search.metacopy;
        let mut stack: &[Arc<RealDir>] = &dir.lowers;
        let mut moved = false;
        if search.redirected && matches!(search.wanted, Wanted::Path(_)) {
            (stack, moved) = (&follow.roots, true);
        }
        let slots = self.known_slots(dir, name);
        let mut in_vain = 0;
        let mut hits: Vec<(usize, Hit<'_>)> = Vec::new();
        let mut index = 0;
        while !search.stop && index < stack.len() {
            search.may_go_on(name)?;
            let base = &stack[index];
            if !looks {
                search.last = index + 1 == stack.len();
            } else if search.is_dir || follow.data.is_empty() {
                search.last = self.is_lowest(base.layer);
            }
            // What is known is known of this name in these directories.
            let known = slots.as_ref().filter(|_| !moved && !search.redirected);
            if known.is_some_and(|slots| !slots.contains(&(index as u16))) {
                index += 1;
                continue;
            }
            let Some(hit) = search.layer(base)? else {
                in_vain += 1;
                index += 1;
                continue;
            };
            // Metadata copies in the middle are only passed through.
            if !search.metacopy || hits.is_empty() {
                hits.push((if moved { usize::MAX } else { index }, hit));
            }
            if search.redirected && matches!(search.wanted, Wanted::Path(_)) {
                index = match base.layer {
                    LayerIndex::Lower(layer) => usize::from(layer) + 1,
                    LayerIndex::Upper => 0,
                };
                (stack, moved) = (&follow.roots, true);
            } else {
                index += 1;
            }
        }
        if slots.is_none() {
            self.asked_in_vain(dir, in_vain);
        }
        let mut data = None;
        if search.metacopy && !hits.is_empty() && !follow.data.is_empty() && search.absolute {
            if let Wanted::Path(path) = search.wanted {
                data = Some(DataPlace::in_data_layers(path));
            }
        } else {
            search.may_go_on(name)?;
            if search.metacopy || (upper_is_metacopy && hits.is_empty()) {
                let what = "finding the data of a metadata copy";
                return Err(Fault::merged(what, Errno::IO).named(name));
            }
            let copies = usize::from(upper.is_none());
            if (upper_is_metacopy || upper.is_none())
                && !search.is_dir
                && let Some((_, hit)) = hits.get(copies..).and_then(|rest| rest.last())
            {
                let id = self.ground.real_id(&hit.stat);
                data = Some(DataPlace::found(&hit.parent, &hit.name, id));
            }
        }
        Ok(self.found(dir, name, upper, hits, data))
    }

    fn found(
        &self,
        dir: &DirPart,
        name: &OsStr,
        upper: Option<Hit<'_>>,
        hits: Vec<(usize, Hit<'_>)>,
        data: Option<Arc<DataPlace>>,
    ) -> Option<Found> {
        let leaf = |source, hit: &Hit<'_>| Found::Leaf {
            source,
            stat: hit.stat,
            data,
        };
        match (&upper, hits.first()) {
            (None, None) => return None,
            (Some(hit), _) if !is_dir(&hit.stat) => return Some(leaf(Source::Upper, hit)),
            (None, Some((slot, hit))) if !is_dir(&hit.stat) => {
                return Some(leaf(Source::Lower(*slot as u16), hit));
            }
            _ => {}
        }
        let layer = |hit: Hit<'_>| DirLayer {
            stat: hit.stat,
            opened: hit.opened,
        };
        let lowers = hits.into_iter().map(|(slot, hit)| {
            let here = dir
                .lowers
                .get(slot)
                .is_some_and(|lower| Arc::ptr_eq(lower, &hit.parent))
                && hit.name == name;
            let at = if here {
                LowerAt::Slot(slot as u16)
            } else {
                let id = self.ground.real_id(&hit.stat);
                LowerAt::Elsewhere(hit.parent.child(&hit.name, id))
            };
            (at, layer(hit))
        });
        let lowers = lowers.collect();
        Some(Found::Dir {
            upper: upper.map(layer),
            lowers,
        })
    }

    fn is_lowest(&self, layer: LayerIndex) -> bool {
        match layer {
            LayerIndex::Upper => false,
            LayerIndex::Lower(index) => usize::from(index) + 1 == self.follow.roots.len(),
        }
    }

    /// The redirect of `name` in a directory, or of the directory itself for `.`.
    pub(super) fn redirect_of(&self, real: &RealDir, name: &OsStr) -> Outcome<Option<Redirect>> {
        match real.sure_xattr(name, self.namespace.redirect())? {
            None => Ok(None),
            Some(value) => match Redirect::parse(&value) {
                Ok(redirect) => Ok(Some(redirect)),
                Err(_) => Err(real.fault("reading a redirect", name, Errno::INVAL)),
            },
        }
    }

    /// The path of `name` in `parent` from the lower layers' roots, as redirects and names above
    /// it tell.
    pub(super) fn lower_path(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        own: Option<Redirect>,
    ) -> Outcome<Vec<OsString>> {
        let mut path = Vec::new();
        let mut next = Some((own, name.to_os_string(), parent.clone()));
        while let Some((redirect, name, above)) = next.take() {
            match redirect {
                Some(Redirect::Path(mut names)) => {
                    names.reverse();
                    path.append(&mut names);
                    break;
                }
                Some(Redirect::Name(name)) => path.push(name),
                None => path.push(name),
            }
            let upper = above.dir.as_ref().and_then(|dir| dir.upper.get());
            let redirect = match upper {
                Some(upper) => self.redirect_of(upper, OsStr::new("."))?,
                None => None,
            };
            let state = above.state.read();
            next = state
                .link
                .as_ref()
                .map(|link| (redirect, link.name.to_os_string(), link.parent.clone()));
        }
        path.reverse();
        Ok(path)
    }

    /// Makes what is about to leave its place in the upper layer, or to get another name, find
    /// its lower part again. `called` is its name in the merged tree, `name` one that it has in
    /// `upper`. `EXDEV` where that can't be written down.
    pub(super) fn set_redirect(
        &self,
        (parent, called): (&Arc<Node>, &OsStr),
        upper: &Arc<RealDir>,
        name: &OsStr,
        reach: Reach,
    ) -> Outcome<()> {
        let fault = || upper.fault("setting a redirect", name, Errno::XDEV);
        let own = self.redirect_of(upper, name)?;
        match (&own, reach) {
            (Some(Redirect::Path(_)), _) | (Some(Redirect::Name(_)), Reach::SameDirectory) => {
                return Ok(());
            }
            _ => {}
        }
        let redirect = match reach {
            Reach::SameDirectory => Redirect::Name(called.to_os_string()),
            Reach::Anywhere => Redirect::Path(self.lower_path(parent, called, own)?),
        };
        let value = redirect.format().ok_or_else(fault)?;
        let file = upper.open()?;
        let attr = self.namespace.redirect();
        let flags = rustix::fs::XattrFlags::empty();
        xattr::set(file.as_fd(), name, attr, &value, flags).map_err(|_| fault())
    }
}

/// Where a redirect has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Under another name in the directory where it is.
    SameDirectory,
    /// In any directory.
    Anywhere,
}

impl<'n> Search<'n> {
    /// Refuses to follow what the options don't allow to.
    fn may_go_on(&self, name: &OsStr) -> Outcome<()> {
        let follow = &self.union.follow;
        let refused = |what| Err(Fault::merged(what, Errno::PERM).named(name));
        if self.metacopy && !follow.metacopy {
            return refused("following a metadata copy");
        }
        if self.redirected && !follow.redirects {
            return refused("following a redirect");
        }
        Ok(())
    }

    /// Looks for what is wanted in one layer: below `base`, which is the layer's root where a
    /// path is wanted.
    fn layer(&mut self, base: &Arc<RealDir>) -> Outcome<Option<Hit<'n>>> {
        let length = match &self.wanted {
            Wanted::Name(name) => {
                let name = name.clone();
                return self.step(base, name, 0);
            }
            Wanted::Path(path) => path.len(),
        };
        let mut base = base.clone();
        // Counted from the end: a redirect on the way changes what is before.
        for rest in (0..length).rev() {
            let name = match &self.wanted {
                Wanted::Path(path) => path.get(path.len() - 1 - rest).cloned(),
                Wanted::Name(_) => None,
            };
            let name =
                name.ok_or_else(|| base.fault("following a path", OsStr::new("."), Errno::IO))?;
            match self.step(&base, Cow::Owned(name), rest)? {
                None => return Ok(None),
                Some(hit) if rest == 0 => return Ok(Some(hit)),
                Some(hit) => {
                    let id = self.union.ground.real_id(&hit.stat);
                    let child = hit.parent.child(&hit.name, id);
                    if let Some(file) = &hit.opened {
                        child.remember(file);
                    }
                    base = child;
                }
            }
        }
        Ok(None)
    }

    /// Looks at one name; `rest` more follow on the path.
    fn step(
        &mut self,
        base: &Arc<RealDir>,
        called: Cow<'n, OsStr>,
        rest: usize,
    ) -> Outcome<Option<Hit<'n>>> {
        let union = self.union;
        let name: &OsStr = &called.clone();
        if name.is_empty() || name == "." || name == ".." {
            return Err(base.fault("following a redirect", name, Errno::ACCESS));
        }
        if name.len() > 255 {
            return Ok(None);
        }
        let stat = match base.stat(name) {
            Ok(Some(stat)) => stat,
            Ok(None) => {
                self.stop |= base.hides(name)?;
                return Ok(None);
            }
            // What is in there is nobody's business, but a fake root may put its own beside.
            Err(fault)
                if fault.errno == Errno::ACCESS
                    && union.owners.records()
                    && base.layer != LayerIndex::Upper =>
            {
                return Ok(None);
            }
            Err(fault) => return Err(fault),
        };
        if union.is_whiteout(base, name, &stat)? {
            self.stop = true;
            return Ok(None);
        }
        let is_end = rest == 0;
        let kind = FileKind::of_mode(stat.st_mode);
        if is_end && self.metacopy && kind != FileKind::Regular {
            self.stop = true;
            return Ok(None);
        }
        let mut hit = Hit {
            parent: base.clone(),
            name: called,
            stat,
            opened: None,
        };
        if !is_dir(&stat) {
            if self.is_dir || !is_end {
                self.stop = true;
                return Ok(None);
            }
            self.metacopy = union.is_metacopy(base, name, &stat)?;
            self.stop = !self.metacopy;
            if self.metacopy && !self.last {
                self.take_redirect(union.redirect_of(base, name)?, rest);
            }
            return Ok(Some(hit));
        }
        self.is_dir |= is_end;
        if self.last {
            return Ok(Some(hit));
        }
        hit.opened = match base.open_child_dir(name) {
            Ok(file) => Some(file),
            Err(fault) if fault.errno == Errno::ACCESS && base.layer != LayerIndex::Upper => None,
            Err(fault) => return Err(fault),
        };
        let Some(file) = &hit.opened else {
            return Ok(Some(hit));
        };
        let opaque = base.opaque(name, file, union.namespace.opaque())?;
        match (opaque.as_deref(), base.layer) {
            (Some(OPAQUE), _) => {
                self.stop = true;
                return Ok(Some(hit));
            }
            (Some(MAY_HOLD_XATTR_WHITEOUTS), LayerIndex::Lower(layer)) => {
                union.xattr_whiteouts[usize::from(layer)].store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        let redirect = base.dir_xattr(name, file, union.namespace.redirect())?;
        let redirect = match redirect {
            None => None,
            Some(value) => Some(
                Redirect::parse(&value)
                    .map_err(|_| base.fault("reading a redirect", name, Errno::INVAL))?,
            ),
        };
        self.take_redirect(redirect, rest);
        Ok(Some(hit))
    }

    /// Changes what is wanted to what a redirect says; `rest` names of it stay.
    fn take_redirect(&mut self, redirect: Option<Redirect>, rest: usize) {
        self.absolute = matches!(redirect, Some(Redirect::Path(_)));
        let Some(redirect) = redirect else { return };
        self.redirected = true;
        let (before, after) = match &self.wanted {
            Wanted::Name(_) => (&[][..], &[][..]),
            Wanted::Path(path) => {
                let at = path.len() - 1 - rest;
                (&path[..at], &path[at + 1..])
            }
        };
        self.wanted = match redirect {
            Redirect::Path(names) => {
                // An opaque directory on the way here does not hide what this leads to.
                self.stop = false;
                Wanted::Path([&names, after].concat())
            }
            Redirect::Name(name) if matches!(self.wanted, Wanted::Name(_)) => {
                Wanted::Name(Cow::Owned(name))
            }
            Redirect::Name(name) => Wanted::Path([before, &[name], after].concat()),
        };
    }
}
