//! Flow control: limits the bytes of a stream that are in flight.
//!
//! Each stream starts with a window of [`WINDOW`] bytes. The sender spends it; the receiver returns
//! credit for the bytes that it has passed on. The receiver therefore never holds more than
//! [`WINDOW`] bytes of a stream, however slow its reader is, and the connection never fills up.
//!
//! Both ends are pure counters. Their owners send the credit messages.

/// The bytes of one stream that may be in flight.
pub const WINDOW: u32 = 256 * 1024;

/// The most bytes of a stream in one message. A quarter of the window keeps both sides busy.
pub const MAX_CHUNK: usize = 64 * 1024;

/// The peer violated flow control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The peer sent more bytes than its window allowed.
    #[error("received {sent} bytes, more than the {allowed} allowed")]
    Overrun {
        /// The bytes received.
        sent: usize,
        /// The bytes that remained in the window.
        allowed: u32,
    },
    /// The peer returned credit for more bytes than were in flight.
    #[error("received credit for {0} bytes that were never sent")]
    Overcredit(u32),
}

/// The sender's side of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    remaining: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { remaining: WINDOW }
    }
}

impl SendWindow {
    /// Returns the bytes that the next message may carry; zero means: wait for credit.
    pub fn available(&self) -> usize {
        (self.remaining as usize).min(MAX_CHUNK)
    }

    /// Takes `bytes`, at most [`Self::available`], from the window.
    ///
    /// # Panics
    /// If `bytes` exceeds [`Self::available`]: a bug in this program, not in the peer.
    pub fn spend(&mut self, bytes: usize) {
        assert!(bytes <= self.available(), "spent {bytes} of {}", self.available());
        // `available` is at most `MAX_CHUNK`.
        #[allow(clippy::cast_possible_truncation)]
        let bytes = bytes as u32;
        self.remaining -= bytes;
    }

    /// Returns `bytes` to the window, once the receiver has passed them on.
    pub fn credit(&mut self, bytes: u32) -> Result<(), FlowError> {
        match self.remaining.checked_add(bytes) {
            Some(remaining) if remaining <= WINDOW => {
                self.remaining = remaining;
                Ok(())
            }
            _ => Err(FlowError::Overcredit(bytes)),
        }
    }
}

/// The receiver's side of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    remaining: u32,
    passed_on: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { remaining: WINDOW, passed_on: 0 }
    }
}

impl ReceiveWindow {
    /// Records `bytes` as received.
    pub fn receive(&mut self, bytes: usize) -> Result<(), FlowError> {
        let remaining =
            u32::try_from(bytes).ok().and_then(|bytes| self.remaining.checked_sub(bytes));
        self.remaining =
            remaining.ok_or(FlowError::Overrun { sent: bytes, allowed: self.remaining })?;
        Ok(())
    }

    /// Records `bytes` as passed on. Returns the credit to send now, if any: small amounts are
    /// collected, so that credit messages stay rare.
    pub fn pass_on(&mut self, bytes: usize) -> Option<u32> {
        let owed = WINDOW - self.remaining;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.passed_on = self.passed_on.saturating_add(bytes).min(owed);
        if self.passed_on < WINDOW / 4 {
            return None;
        }
        self.remaining += self.passed_on;
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
    fn credit_for_bytes_never_sent_is_rejected() {
        assert_eq!(SendWindow::default().credit(1), Err(FlowError::Overcredit(1)));
        let mut window = SendWindow::default();
        window.spend(10);
        assert_eq!(window.credit(u32::MAX), Err(FlowError::Overcredit(u32::MAX)));
    }

    proptest! {
        /// Two honest ends never see an error, never hold more than a window, and never stall:
        /// once the receiver has passed on everything, the sender may send again.
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
