//! Id maps of user namespaces.

use std::ffi::OsString;

/// A range of ids: `count` ids from `inside` on stand for those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id as the namespace sees it.
    pub inside: u32,
    /// First id as the namespace's parent sees it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id map of a user namespace, for users or for groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap(Vec<IdRange>);

/// The kernel takes this many lines (user_namespaces(7)).
const MAX_RANGES: usize = 340;

impl IdMap {
    /// One id, shown as `inside`.
    pub fn single(inside: u32, outside: u32) -> Self {
        Self(vec![IdRange {
            inside,
            outside,
            count: 1,
        }])
    }

    /// `own` becomes 0, and the ids from 1 on stand for `ranges`, one after the other.
    pub fn fake_root(own: u32, ranges: &[(u32, u32)]) -> Self {
        let mut map = Self::single(0, own);
        let mut inside: u32 = 1;
        for &(outside, count) in ranges.iter().take(MAX_RANGES - 1) {
            let count = count.min(u32::MAX - inside);
            if count == 0 {
                break;
            }
            map.0.push(IdRange {
                inside,
                outside,
                count,
            });
            inside += count;
        }
        map
    }

    /// `own` stays itself, and the ids around it stand for `ranges`, one after the other.
    pub fn keep_id(own: u32, ranges: &[(u32, u32)]) -> Self {
        let mut map = Self(Vec::new());
        let mut inside: u32 = 0;
        // One range may come in two parts, and one line is for `own`.
        for &(mut outside, mut count) in ranges.iter().take(MAX_RANGES - 2) {
            while count > 0 && inside < u32::MAX {
                let room = match inside.cmp(&own) {
                    std::cmp::Ordering::Less => own - inside,
                    std::cmp::Ordering::Equal => {
                        inside += 1;
                        continue;
                    }
                    std::cmp::Ordering::Greater => u32::MAX - inside,
                };
                let part = count.min(room);
                map.0.push(IdRange {
                    inside,
                    outside,
                    count: part,
                });
                inside += part;
                outside += part;
                count -= part;
            }
        }
        map.0.insert(
            0,
            IdRange {
                inside: own,
                outside: own,
                count: 1,
            },
        );
        map
    }

    /// A map of these ranges.
    pub fn of(ranges: Vec<IdRange>) -> Self {
        Self(ranges)
    }

    /// Its ranges.
    pub fn ranges(&self) -> &[IdRange] {
        &self.0
    }

    /// Reads what `/proc/PID/uid_map` shows; `None` where that isn't a map.
    pub fn parse(text: &str) -> Option<Self> {
        let ranges = text
            .lines()
            .map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse);
                match (numbers.next()?, numbers.next()?, numbers.next()?) {
                    (Ok(inside), Ok(outside), Ok(count)) if count > 0 => {
                        numbers.next().is_none().then_some(IdRange {
                            inside,
                            outside,
                            count,
                        })
                    }
                    _ => None,
                }
            })
            .collect::<Option<Vec<_>>>()?;
        (!ranges.is_empty() && ranges.len() <= MAX_RANGES).then_some(Self(ranges))
    }

    /// Whether this id, as the namespace sees it, stands for one outside.
    pub fn has(&self, id: u32) -> bool {
        self.0
            .iter()
            .any(|range| id >= range.inside && id - range.inside < range.count)
    }

    /// Whether it maps one id only, which needs no help from newuidmap(1).
    pub fn is_single(&self) -> bool {
        matches!(self.0.as_slice(), [range] if range.count == 1)
    }

    /// The map reduced to its first id.
    #[must_use]
    pub fn first_only(&self) -> Self {
        let mut ranges = self.0.clone();
        ranges.truncate(1);
        for range in &mut ranges {
            range.count = 1;
        }
        Self(ranges)
    }

    /// As `/proc/PID/uid_map` takes it.
    pub fn to_text(&self) -> String {
        self.0
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
            .collect()
    }

    /// As newuidmap(1) takes it.
    pub fn to_args(&self) -> Vec<OsString> {
        self.0
            .iter()
            .flat_map(|range| [range.inside, range.outside, range.count])
            .map(|number| number.to_string().into())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_text_is_a_map() {
        let text = "         0       1001          1\n         1     100000      65535\n";
        let map = IdMap::parse(text).unwrap();
        assert_eq!(map.to_text(), "0 1001 1\n1 100000 65535\n");
        for wrong in ["", "0 1\n", "0 1 2 3\n", "a b c\n", "0 1 0\n", "0 0 1\n\n"] {
            assert_eq!(IdMap::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_id_that_is_kept_is_left_out_of_the_ranges() {
        let map = IdMap::keep_id(1001, &[(100_000, 500), (200_000, 600)]);
        assert_eq!(
            map.to_text(),
            "1001 1001 1\n0 100000 500\n500 200000 501\n1002 200501 99\n"
        );
        assert_eq!(map.first_only(), IdMap::single(1001, 1001));
        assert_eq!(IdMap::keep_id(5, &[]), IdMap::single(5, 5));
        assert_eq!(IdMap::keep_id(0, &[(7, 2)]).to_text(), "0 0 1\n1 7 2\n");
    }

    #[test]
    fn a_fake_root_has_the_ranges_one_after_the_other() {
        let map = IdMap::fake_root(1001, &[(100_000, 65536), (300_000, 10)]);
        assert_eq!(map.to_text(), "0 1001 1\n1 100000 65536\n65537 300000 10\n");
        assert!(!map.is_single());
        assert_eq!(map.first_only(), IdMap::single(0, 1001));
        assert!(IdMap::fake_root(1001, &[]).is_single());
    }
}
