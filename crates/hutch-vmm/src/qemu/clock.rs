//! The rate of the counter that an emulated processor has as its clock.
//!
//! QEMU gives an emulated x86 guest the host's time stamp counter. A kernel measures that counter's rate when it boots,
//! against a timer that is emulated too: on a busy host the measurement goes wrong by a factor of ten and more, and so
//! does every clock of the guest, for as long as it lives. So it is told (`tsc_early_khz`).

use std::path::Path;

use crate::Accelerator;

/// Describes the host's processors on Linux.
pub(super) const CPUINFO: &str = "/proc/cpuinfo";

/// Counters of real machines, in kHz; anything else is a misunderstanding.
const PLAUSIBLE_KHZ: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// Words for the guest's kernel; none where the rate is not known or not needed.
pub(super) fn kernel_words(accelerator: Accelerator) -> Vec<String> {
    if accelerator != Accelerator::Tcg || !cfg!(target_arch = "x86_64") {
        return Vec::new();
    }
    let cpuinfo = std::fs::read_to_string(Path::new(CPUINFO)).unwrap_or_default();
    let khz = counter_khz(&cpuinfo);
    if khz.is_none() {
        tracing::warn!("the rate of the host's time stamp counter is not known");
    }
    khz.map(|khz| format!("tsc_early_khz={khz}")).into_iter().collect()
}

/// The counter's rate by the description of the host's first processor.
///
/// The kernel takes `loops_per_jiffy` from the counter's rate (`lpj_fine`, arch/x86/kernel/tsc.c), and shows it as
/// `bogomips`: twice the rate in MHz, with two digits. That holds where the rate is constant.
fn counter_khz(cpuinfo: &str) -> Option<u64> {
    let first = cpuinfo.split("\n\n").next()?;
    let value = |name: &str| {
        first.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then_some(value.trim())
        })
    };
    value("flags")?.split(' ').find(|flag| *flag == "constant_tsc")?;
    let (whole, hundredths) = value("bogomips")?.split_once('.')?;
    let hundredths = (hundredths.len() == 2).then_some(hundredths)?;
    let doubled: u64 =
        whole.parse::<u64>().ok()?.checked_mul(100)? + hundredths.parse::<u64>().ok()?;
    // Hundredths of a MHz, doubled: five of them are a kHz of ten.
    let khz = doubled.checked_mul(10)? / 2;
    PLAUSIBLE_KHZ.contains(&khz).then_some(khz)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuinfo(bogomips: &str, flags: &str) -> String {
        format!(
            "processor\t: 0\ncpu MHz\t\t: 800.000\nflags\t\t: {flags}\nbogomips\t: {bogomips}\n\nprocessor\t: 1\nbogomips\t: 1.00\n"
        )
    }

    #[test]
    fn the_rate_is_half_of_what_the_kernel_shows() {
        assert_eq!(counter_khz(&cpuinfo("5192.24", "fpu constant_tsc sse")), Some(2_596_120));
        assert_eq!(counter_khz(&cpuinfo("4889.99", "constant_tsc")), Some(2_444_995));
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        for text in [
            cpuinfo("5192.24", "fpu tsc"),
            cpuinfo("5192", "constant_tsc"),
            cpuinfo("1.00", "constant_tsc"),
            cpuinfo("99999999999999999999.00", "constant_tsc"),
            cpuinfo("x.yz", "constant_tsc"),
            String::new(),
        ] {
            assert_eq!(counter_khz(&text), None, "{text}");
        }
    }

    #[test]
    fn hardware_virtualisation_needs_no_telling() {
        assert!(kernel_words(Accelerator::Kvm).is_empty());
    }
}
