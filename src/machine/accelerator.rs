//! KVM or emulation: which one a host can do, and the one table of what differs between them.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// KVM where a stock kernel runs on it, else emulation with a warning.
    #[default]
    Auto,
    /// This one or none.
    Exactly(Accelerator),
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor itself. The product.
    Kvm,
    /// QEMU's software emulation: slower by an order of magnitude and, by QEMU's own security
    /// policy, no isolation boundary. For trying and testing.
    Tcg,
}

/// What differs between the accelerators. Everything else is the same code.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// Value of `accel=` and the machine's timer devices.
    pub machine: &'static str,
    /// Processor model.
    pub processor: &'static str,
    /// Kernel arguments.
    pub kernel: &'static str,
    /// Whether the kernel must be told the frequency of its time stamp counter.
    pub tell_frequency: bool,
    /// How much longer than on KVM booting may take, as a factor for deadlines.
    pub patience: u32,
}

/// A KVM guest reads kvmclock and needs none of the legacy timers.
const KVM: Profile = Profile {
    machine: "accel=kvm,pit=off,pic=off,rtc=on",
    processor: "host",
    kernel: "",
    tell_frequency: false,
    patience: 1,
};

/// Without kvmclock the kernel calibrates its clock against the legacy timers and sometimes hangs
/// at that, so it is given them and told the frequency, which is the host's. `tsc=reliable` keeps
/// the kernel from watching that counter: all it could compare it with are timer interrupts, which
/// come late on a busy host. It would take the counter for the one that is wrong, and count the
/// late interrupts from then on, so that the guest's clock runs slow.
const TCG: Profile = Profile {
    machine: "accel=tcg,pit=on,pic=on,rtc=on",
    processor: "max",
    kernel: "no_timer_check tsc=reliable",
    tell_frequency: true,
    patience: 6,
};

impl Accelerator {
    /// The row of the table.
    pub fn profile(self) -> &'static Profile {
        match self {
            Self::Kvm => &KVM,
            Self::Tcg => &TCG,
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Exactly(Accelerator::Kvm)),
            "tcg" => Ok(Self::Exactly(Accelerator::Tcg)),
            _ => Err("one of auto, kvm, tcg".to_owned()),
        }
    }
}

/// For how long the time stamp counter is watched, which is short beside what is done at the same
/// time. With both ends read to some 100 ns, the frequency is right to about 20 parts in a million.
const WATCH: Duration = Duration::from_millis(8);

/// How often each end is read; the reading that took least counts.
const READINGS: usize = 16;

/// The frequency of the processor's time stamp counter, in kHz, if the guest's kernel must be
/// told: a wrong one makes the guest's clock run fast or slow.
pub(super) async fn counter_frequency(profile: &Profile) -> Option<u64> {
    if !profile.tell_frequency {
        return None;
    }
    let start = Reading::best();
    tokio::time::sleep(WATCH).await;
    start.frequency_until(&Reading::best())
}

/// The counter and the clock at one moment.
struct Reading {
    time: Instant,
    /// The counter before the clock was read.
    count: u64,
    /// How far the counter went meanwhile: what the reading may be wrong by.
    spread: u64,
}

impl Reading {
    fn take() -> Self {
        let count = counter();
        let time = Instant::now();
        Self { time, count, spread: counter().wrapping_sub(count) }
    }

    /// The closest of some readings. On a busy host a process can be stopped between the counter and
    /// the clock, but hardly each time.
    fn best() -> Self {
        let first = Self::take();
        (1..READINGS)
            .map(|_| Self::take())
            .fold(first, |best, next| if next.spread < best.spread { next } else { best })
    }

    fn frequency_until(&self, end: &Self) -> Option<u64> {
        let nanoseconds = end.time.duration_since(self.time).as_nanos();
        let counts = u128::from(end.count.wrapping_sub(self.count));
        u64::try_from((counts * 1_000_000).checked_div(nanoseconds)?).ok()
    }
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// What a host says about KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whether `/dev/kvm` opens, or why not.
    pub device: Result<(), Unusable>,
    /// Whether `kvm_intel` or `kvm_amd` is loaded.
    pub hardware: bool,
    /// Whether `kvm_pvm` is loaded: a KVM without hardware, on which stock kernels hang.
    pub paravirtual: bool,
}

/// Why KVM can't be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no device.
    #[error("there is no /dev/kvm")]
    NoDevice,
    /// The device is there, but not for this user.
    #[error("no permission to open /dev/kvm")]
    NoPermission,
    /// The device can't be opened for another reason.
    #[error("/dev/kvm can't be opened: {0}")]
    NotOpened(String),
    /// The device is not backed by the processor's virtualisation.
    #[error(
        "/dev/kvm is there but neither kvm_intel nor kvm_amd is behind it, and stock kernels hang"
    )]
    NoHardware,
}

impl Failure for Unusable {
    fn code(&self) -> Code {
        match self {
            Self::NoPermission => Code::Forbidden,
            _ => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoPermission => "add your user to the group that owns /dev/kvm: \
                sudo usermod -aG kvm $USER, then log in again"
                .to_owned(),
            _ => "choose tcg as the accelerator to try Mayfly in software emulation, slowly and \
                 without isolation"
                .to_owned(),
        })
    }
}

impl Facts {
    /// Asks this host.
    pub fn gather() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop).map_err(|error| {
                match error.kind() {
                    std::io::ErrorKind::NotFound => Unusable::NoDevice,
                    std::io::ErrorKind::PermissionDenied => Unusable::NoPermission,
                    _ => Unusable::NotOpened(error.to_string()),
                }
            });
        let hardware = loaded("kvm_intel") || loaded("kvm_amd");
        Self { device, hardware, paravirtual: loaded("kvm_pvm") }
    }

    /// Whether a stock kernel runs on this host's KVM.
    pub fn usable(&self) -> Result<(), Unusable> {
        self.device.clone()?;
        if self.hardware && !self.paravirtual { Ok(()) } else { Err(Unusable::NoHardware) }
    }
}

/// The accelerator to take, and why it is not the better one.
pub fn choose(wish: Wish, facts: &Facts) -> Result<(Accelerator, Option<Unusable>), Unusable> {
    match (wish, facts.usable()) {
        (Wish::Exactly(Accelerator::Tcg), _) => Ok((Accelerator::Tcg, None)),
        (_, Ok(())) => Ok((Accelerator::Kvm, None)),
        (Wish::Auto, Err(why)) => Ok((Accelerator::Tcg, Some(why))),
        // Asked for by name, a KVM that looks odd is still worth the try; one that can't be
        // opened is not.
        (Wish::Exactly(Accelerator::Kvm), Err(why)) => match &facts.device {
            Ok(()) => Ok((Accelerator::Kvm, Some(why))),
            Err(why) => Err(why.clone()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Facts = Facts { device: Ok(()), hardware: true, paravirtual: false };

    #[test]
    fn auto_takes_kvm_only_where_hardware_is_behind_it() {
        assert_eq!(choose(Wish::Auto, &GOOD), Ok((Accelerator::Kvm, None)));
        let paravirtual = Facts { hardware: false, paravirtual: true, ..GOOD };
        assert_eq!(
            choose(Wish::Auto, &paravirtual),
            Ok((Accelerator::Tcg, Some(Unusable::NoHardware)))
        );
        let closed = Facts { device: Err(Unusable::NoPermission), ..GOOD };
        assert_eq!(
            choose(Wish::Auto, &closed),
            Ok((Accelerator::Tcg, Some(Unusable::NoPermission)))
        );
    }

    /// Each end of a watch may be read late, by as much as its spread says.
    #[test]
    fn a_frequency_is_counts_over_time() {
        let start = Reading { time: Instant::now(), count: u64::MAX - 999, spread: 20 };
        let end = |nanoseconds, count| Reading {
            time: start.time + Duration::from_nanos(nanoseconds),
            count,
            spread: 20,
        };
        // The counter may pass its end.
        assert_eq!(start.frequency_until(&end(1_000_000, 1_999_000)), Some(2_000_000));
        assert_eq!(start.frequency_until(&end(0, 5)), None);
    }

    #[test]
    fn kvm_by_name_fails_where_the_device_does_not_open() {
        let closed = Facts { device: Err(Unusable::NoPermission), ..GOOD };
        let error = choose(Wish::Exactly(Accelerator::Kvm), &closed).unwrap_err();
        assert_eq!(error.code(), Code::Forbidden);
    }

    #[test]
    fn emulation_by_name_asks_nothing_of_the_host() {
        let bare = Facts { device: Err(Unusable::NoDevice), hardware: false, paravirtual: false };
        assert_eq!(choose(Wish::Exactly(Accelerator::Tcg), &bare), Ok((Accelerator::Tcg, None)));
    }
}
