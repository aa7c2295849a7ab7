//! Flow control: how much of a stream may be under way.
//!
//! Each stream starts with a window of [`WINDOW`] bytes. The sender spends it, the receiver gives
//! back what it has passed on. So at most [`WINDOW`] bytes of any stream are ever held by the
//! receiver, however slow the reader behind it is, and the connection itself never fills up.
//!
//! Both ends are pure counters; who sends the credit message is up to their owners.

/// Bytes of one stream that may be under way.
pub const WINDOW: u32 = 256 * 1024;

/// Bytes of a stream in one message. A quarter of the window keeps both sides busy.
pub const MAX_CHUNK: usize = 64 * 1024;

/// The other side broke the rules of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// More bytes came than were allowed to be under way.
    #[error("{sent} bytes where {allowed} were allowed")]
    Overrun {
        /// Bytes that came.
        sent: usize,
        /// Bytes that the window had left.
        allowed: u32,
    },
    /// More credit came than there were bytes under way.
    #[error("credit for {0} bytes that were never sent")]
    Overcredit(u32),
}

/// The sender's side of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { left: WINDOW }
    }
}

impl SendWindow {
    /// How many bytes may go into the next message; zero means: wait for credit.
    pub fn available(&self) -> usize {
        (self.left as usize).min(MAX_CHUNK)
    }

    /// Takes `bytes`, at most [`Self::available`], out of the window.
    ///
    /// # Panics
    /// Where the caller takes more than is there: a mistake in this program, not in the peer.
    pub fn spend(&mut self, bytes: usize) {
        assert!(bytes <= self.available(), "spent {bytes} of {}", self.available());
        // `available` is at most `MAX_CHUNK`.
        #[allow(clippy::cast_possible_truncation)]
        let bytes = bytes as u32;
        self.left -= bytes;
    }

    /// Puts back what the receiver has passed on.
    pub fn credit(&mut self, bytes: u32) -> Result<(), FlowError> {
        match self.left.checked_add(bytes) {
            Some(left) if left <= WINDOW => {
                self.left = left;
                Ok(())
            }
            _ => Err(FlowError::Overcredit(bytes)),
        }
    }
}

/// The receiver's side of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    left: u32,
    passed_on: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { left: WINDOW, passed_on: 0 }
    }
}

impl ReceiveWindow {
    /// Notes that `bytes` have come.
    pub fn receive(&mut self, bytes: usize) -> Result<(), FlowError> {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.left.checked_sub(bytes));
        self.left = left.ok_or(FlowError::Overrun { sent: bytes, allowed: self.left })?;
        Ok(())
    }

    /// Notes that `bytes` of what had come were passed on. Gives the credit that is now to be
    /// sent: small amounts are gathered, so that credits stay rare beside the data.
    pub fn pass_on(&mut self, bytes: usize) -> Option<u32> {
        let owed = WINDOW - self.left;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.passed_on = self.passed_on.saturating_add(bytes).min(owed);
        if self.passed_on < WINDOW / 4 {
            return None;
        }
        self.left += self.passed_on;
        Some(std::mem::take(&mut self.passed_on))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn more_than_the_window_is_an_overrun() {
        let mut window = ReceiveWindow::default();
        window.receive(WINDOW as usize).unwrap();
        assert_eq!(window.receive(1), Err(FlowError::Overrun { sent: 1, allowed: 0 }));
    }

    #[test]
    fn credit_for_what_was_never_sent_is_refused() {
        assert_eq!(SendWindow::default().credit(1), Err(FlowError::Overcredit(1)));
        let mut window = SendWindow::default();
        window.spend(10);
        assert_eq!(window.credit(u32::MAX), Err(FlowError::Overcredit(u32::MAX)));
    }

    proptest! {
        /// Two honest ends never see an error, never hold more than a window, and never stall:
        /// once the receiver has passed everything on, the sender may send again.
        #[test]
        fn honest_ends_neither_overrun_nor_stall(steps in prop::collection::vec((any::<bool>(), 1..MAX_CHUNK), 1..400)) {
            let (mut sender, mut receiver) = (SendWindow::default(), ReceiveWindow::default());
            let mut held = 0_usize;
            for (send, size) in steps {
                if send {
                    let size = size.min(sender.available());
                    sender.spend(size);
                    receiver.receive(size).unwrap();
                    held += size;
                } else {
                    let size = size.min(held);
                    held -= size;
                    if let Some(credit) = receiver.pass_on(size) {
                        sender.credit(credit).unwrap();
                    }
                }
                prop_assert!(held <= WINDOW as usize);
            }
            if let Some(credit) = receiver.pass_on(held) {
                sender.credit(credit).unwrap();
            }
            prop_assert!(sender.available() > 0);
        }
    }
}
