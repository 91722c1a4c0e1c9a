//! Which distribution this is: remedies differ.

use std::path::Path;

/// A family of distributions with the same remedies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distro {
    /// Debian and what is made from it.
    Debian,
    /// Ubuntu and what is made from it.
    Ubuntu,
    /// Arch Linux and what is made from it.
    Arch,
    /// NixOS.
    NixOs,
    /// Fedora, RHEL, CentOS and what is made from them.
    Fedora,
    /// Any other.
    Other,
}

impl Distro {
    /// This machine's, from os-release(5).
    pub(super) fn current() -> Self {
        ["/etc/os-release", "/usr/lib/os-release"]
            .into_iter()
            .find_map(|path| std::fs::read_to_string(Path::new(path)).ok())
            .map_or(Self::Other, |text| Self::from_os_release(&text))
    }

    fn from_os_release(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim_matches(['"', '\'']))
                .unwrap_or_default()
        };
        std::iter::once(value("ID"))
            .chain(value("ID_LIKE").split_whitespace())
            .find_map(|id| match id {
                "debian" | "raspbian" => Some(Self::Debian),
                "ubuntu" => Some(Self::Ubuntu),
                "arch" => Some(Self::Arch),
                "nixos" => Some(Self::NixOs),
                "fedora" | "rhel" | "centos" => Some(Self::Fedora),
                _ => None,
            })
            .unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_its_name_or_by_what_it_is_like() {
        for (text, distro) in [
            ("NAME=x\nID=debian\n", Distro::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Distro::Ubuntu),
            ("ID=\"manjaro\"\nID_LIKE=arch", Distro::Arch),
            ("ID=nixos", Distro::NixOs),
            (
                "ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"",
                Distro::Fedora,
            ),
            ("ID=void", Distro::Other),
            ("", Distro::Other),
        ] {
            assert_eq!(Distro::from_os_release(text), distro, "{text}");
        }
    }
}
