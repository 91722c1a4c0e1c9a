//! A file's name in what is sent to another process: its bytes, which need not be text.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

// What serde calls is given a reference to the field.
pub(super) fn serialize<S: Serializer>(file: &Rc<Path>, to: S) -> Result<S::Ok, S::Error> {
    file.as_os_str().as_bytes().serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Rc<Path>, D::Error> {
    let bytes = Vec::<u8>::deserialize(from)?;
    Ok(Rc::from(PathBuf::from(OsString::from_vec(bytes))))
}
