//! What all of fuser's replies have in common: they can be an error.

/// A reply that may be an error.
pub(super) trait Refuse {
    /// Answers with an error number.
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! refuse {
    ($($reply:ty),* $(,)?) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: fuser::Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    fuser::ReplyAttr,
    fuser::ReplyCreate,
    fuser::ReplyData,
    fuser::ReplyDirectory,
    fuser::ReplyDirectoryPlus,
    fuser::ReplyEmpty,
    fuser::ReplyEntry,
    fuser::ReplyIoctl,
    fuser::ReplyLseek,
    fuser::ReplyStatfs,
    fuser::ReplyWrite,
    fuser::ReplyXattr,
);

/// A request without an answer.
#[derive(Debug)]
pub(super) struct NoReply;

impl Refuse for NoReply {
    fn refuse(self, _errno: fuser::Errno) {}
}
