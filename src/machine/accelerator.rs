//! The accelerators, KVM and emulation: which one a host supports, and how they differ.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use mayfly_failure::{Code, Failure};

/// The user's choice of accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorPreference {
    /// KVM if stock kernels run on it, otherwise emulation with a warning.
    #[default]
    Auto,
    /// Only this accelerator.
    Exactly(Accelerator),
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM: the processor itself. For production.
    Kvm,
    /// QEMU's software emulation: slower by an order of magnitude and, by QEMU's own security
    /// policy, no isolation boundary. For evaluation and tests.
    Tcg,
}

/// The differences between the accelerators. All other code is the same.
#[derive(Debug, PartialEq, Eq)]
pub struct AcceleratorProfile {
    /// Value of `accel=`, and the machine's timer devices.
    pub machine: &'static str,
    /// Processor model.
    pub processor: &'static str,
    /// Kernel arguments.
    pub kernel: &'static str,
    /// Whether the kernel must be given the frequency of its time stamp counter.
    pub needs_tsc_frequency: bool,
    /// Factor for boot deadlines, relative to KVM.
    pub boot_time_factor: u32,
}

/// A KVM guest reads kvmclock and needs no legacy timers.
const KVM: AcceleratorProfile = AcceleratorProfile {
    machine: "accel=kvm,pit=off,pic=off,rtc=on",
    processor: "host",
    kernel: "",
    needs_tsc_frequency: false,
    boot_time_factor: 1,
};

/// Without kvmclock, the kernel calibrates its clock against the legacy timers, which sometimes
/// hangs. So it gets these timers and the counter's frequency, which is the host's. `tsc=reliable`
/// disables the kernel's watchdog of the counter: it could only compare it with timer interrupts,
/// which come late on a busy host. The kernel would then distrust the counter and count the late
/// interrupts instead, so that the guest's clock runs slow.
const TCG: AcceleratorProfile = AcceleratorProfile {
    machine: "accel=tcg,pit=on,pic=on,rtc=on",
    processor: "max",
    kernel: "no_timer_check tsc=reliable",
    needs_tsc_frequency: true,
    boot_time_factor: 6,
};

impl Accelerator {
    /// Returns the accelerator's profile.
    pub fn profile(self) -> &'static AcceleratorProfile {
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

impl FromStr for AcceleratorPreference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Exactly(Accelerator::Kvm)),
            "tcg" => Ok(Self::Exactly(Accelerator::Tcg)),
            _ => Err("must be one of auto, kvm, tcg".to_owned()),
        }
    }
}

/// How long the time stamp counter is measured, which is short compared to the concurrent work.
/// Each end is read to within some 100 ns, so the frequency is accurate to about 20 parts per
/// million.
const MEASURING_TIME: Duration = Duration::from_millis(8);

/// Readings at each end; the one that took the shortest time is used.
const READINGS_PER_END: usize = 16;

/// Measures the frequency of the processor's time stamp counter, in kHz, if the guest's kernel
/// needs it. A wrong frequency makes the guest's clock run fast or slow.
pub(super) async fn tsc_frequency(profile: &AcceleratorProfile) -> Option<u64> {
    if !profile.needs_tsc_frequency {
        return None;
    }
    let start = TscReading::best();
    tokio::time::sleep(MEASURING_TIME).await;
    start.frequency_until(&TscReading::best())
}

/// A simultaneous reading of counter and clock.
struct TscReading {
    time: Instant,
    /// The counter before the clock was read.
    count: u64,
    /// The counter's advance during the reading, which bounds its error.
    spread: u64,
}

impl TscReading {
    fn take() -> Self {
        let count = read_tsc();
        let time = Instant::now();
        Self { time, count, spread: read_tsc().wrapping_sub(count) }
    }

    /// Takes several readings and returns the most accurate one. On a busy host, a process can be
    /// preempted between reading the counter and the clock, but hardly every time.
    fn best() -> Self {
        let first = Self::take();
        (1..READINGS_PER_END)
            .map(|_| Self::take())
            .fold(first, |best, next| if next.spread < best.spread { next } else { best })
    }

    fn frequency_until(&self, end: &Self) -> Option<u64> {
        let nanoseconds = end.time.duration_since(self.time).as_nanos();
        let counts = u128::from(end.count.wrapping_sub(self.count));
        u64::try_from((counts * 1_000_000).checked_div(nanoseconds)?).ok()
    }
}

fn read_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The KVM support of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmStatus {
    /// Whether `/dev/kvm` can be opened, or why not.
    pub device: Result<(), KvmUnavailable>,
    /// Whether `kvm_intel` or `kvm_amd` is loaded.
    pub hardware: bool,
    /// Whether `kvm_pvm` is loaded: a KVM without hardware, on which stock kernels hang.
    pub paravirtual: bool,
}

/// The reason why KVM is unavailable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvmUnavailable {
    /// The device does not exist.
    #[error("/dev/kvm does not exist")]
    NoDevice,
    /// This user may not open the device.
    #[error("no permission to open /dev/kvm")]
    NoPermission,
    /// The device can't be opened for another reason.
    #[error("can't open /dev/kvm: {0}")]
    NotOpened(String),
    /// The device is not backed by the processor's virtualization.
    #[error("/dev/kvm is not backed by kvm_intel or kvm_amd, and stock kernels hang on it")]
    NoHardware,
}

impl Failure for KvmUnavailable {
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
            _ => "use the accelerator tcg to try Mayfly in software emulation, slowly and without \
                 isolation"
                .to_owned(),
        })
    }
}

impl KvmStatus {
    /// Reads the status of this host.
    pub fn read() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop).map_err(|error| {
                match error.kind() {
                    std::io::ErrorKind::NotFound => KvmUnavailable::NoDevice,
                    std::io::ErrorKind::PermissionDenied => KvmUnavailable::NoPermission,
                    _ => KvmUnavailable::NotOpened(error.to_string()),
                }
            });
        let hardware = loaded("kvm_intel") || loaded("kvm_amd");
        Self { device, hardware, paravirtual: loaded("kvm_pvm") }
    }

    /// Checks that stock kernels run on this host's KVM.
    pub fn check_usable(&self) -> Result<(), KvmUnavailable> {
        self.device.clone()?;
        if self.hardware && !self.paravirtual { Ok(()) } else { Err(KvmUnavailable::NoHardware) }
    }
}

/// Chooses the accelerator. Also returns why KVM is not recommended or was not chosen.
pub fn choose(
    preference: AcceleratorPreference,
    kvm: &KvmStatus,
) -> Result<(Accelerator, Option<KvmUnavailable>), KvmUnavailable> {
    match (preference, kvm.check_usable()) {
        (AcceleratorPreference::Exactly(Accelerator::Tcg), _) => Ok((Accelerator::Tcg, None)),
        (_, Ok(())) => Ok((Accelerator::Kvm, None)),
        (AcceleratorPreference::Auto, Err(why)) => Ok((Accelerator::Tcg, Some(why))),
        // If KVM is requested explicitly, try it even if stock kernels may hang on it, but not if
        // the device can't be opened.
        (AcceleratorPreference::Exactly(Accelerator::Kvm), Err(why)) => match &kvm.device {
            Ok(()) => Ok((Accelerator::Kvm, Some(why))),
            Err(why) => Err(why.clone()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: KvmStatus = KvmStatus { device: Ok(()), hardware: true, paravirtual: false };

    #[test]
    fn auto_chooses_kvm_only_if_it_is_backed_by_hardware() {
        assert_eq!(choose(AcceleratorPreference::Auto, &GOOD), Ok((Accelerator::Kvm, None)));
        let paravirtual = KvmStatus { hardware: false, paravirtual: true, ..GOOD };
        assert_eq!(
            choose(AcceleratorPreference::Auto, &paravirtual),
            Ok((Accelerator::Tcg, Some(KvmUnavailable::NoHardware)))
        );
        let closed = KvmStatus { device: Err(KvmUnavailable::NoPermission), ..GOOD };
        assert_eq!(
            choose(AcceleratorPreference::Auto, &closed),
            Ok((Accelerator::Tcg, Some(KvmUnavailable::NoPermission)))
        );
    }

    /// Each end may be read late, by at most its spread.
    #[test]
    fn a_frequency_is_counts_over_time() {
        let start = TscReading { time: Instant::now(), count: u64::MAX - 999, spread: 20 };
        let end = |nanoseconds, count| TscReading {
            time: start.time + Duration::from_nanos(nanoseconds),
            count,
            spread: 20,
        };
        // The counter may wrap around.
        assert_eq!(start.frequency_until(&end(1_000_000, 1_999_000)), Some(2_000_000));
        assert_eq!(start.frequency_until(&end(0, 5)), None);
    }

    #[test]
    fn explicit_kvm_fails_if_the_device_can_not_be_opened() {
        let closed = KvmStatus { device: Err(KvmUnavailable::NoPermission), ..GOOD };
        let error = choose(AcceleratorPreference::Exactly(Accelerator::Kvm), &closed).unwrap_err();
        assert_eq!(error.code(), Code::Forbidden);
    }

    #[test]
    fn explicit_emulation_requires_nothing_of_the_host() {
        let bare = KvmStatus {
            device: Err(KvmUnavailable::NoDevice),
            hardware: false,
            paravirtual: false,
        };
        assert_eq!(
            choose(AcceleratorPreference::Exactly(Accelerator::Tcg), &bare),
            Ok((Accelerator::Tcg, None))
        );
    }
}
