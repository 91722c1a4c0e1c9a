//! In what manner a case runs: with which rights, on which file systems, under which options.

use super::layers::Power;
use super::place::Place;

/// All that isn't layers and steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) power: Power,
    pub(crate) place: Place,
    /// Mount options for both sides, beside the directories: `redirect_dir=on,metacopy=on`.
    pub(crate) options: String,
    /// Mount options that only overfall has.
    pub(crate) server_options: String,
    /// Whether the kernel's caches are dropped now and then.
    pub(crate) drop_caches: bool,
    /// Whether overfall's side has to write the fallback form.
    pub(crate) dotted: bool,
}

impl Manner {
    /// With the usual options.
    pub(crate) fn new(power: Power, place: Place) -> Self {
        Self {
            power,
            place,
            options: String::new(),
            server_options: String::new(),
            drop_caches: false,
            dotted: false,
        }
    }

    /// Whether `option` is among the options of both sides.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|given| given == option)
    }

    /// For people.
    pub(crate) fn label(&self) -> String {
        let mut label = format!("{:?} on {}", self.power, self.place.name()).to_lowercase();
        if !self.options.is_empty() {
            label += &format!(", {}", self.options);
        }
        if !self.server_options.is_empty() {
            label += &format!(", overfall with {}", self.server_options);
        }
        if self.drop_caches {
            label += ", caches dropped";
        }
        if self.dotted {
            label += ", in the fallback form";
        }
        label
    }

    /// The arguments that ask for it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let power = match self.power {
            Power::User => "--user",
            Power::Root => "--root",
        };
        let mut arguments = vec![
            "--fs".to_owned(),
            self.place.name().to_owned(),
            power.to_owned(),
        ];
        for (name, value) in [
            ("--options", &self.options),
            ("--server-options", &self.server_options),
        ] {
            if !value.is_empty() {
                arguments.extend([name.to_owned(), value.clone()]);
            }
        }
        if self.drop_caches {
            arguments.push("--drop-caches".to_owned());
        }
        if self.dotted {
            arguments.push("--dotted".to_owned());
        }
        arguments
    }
}
