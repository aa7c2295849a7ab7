//! Tests of `sums`, in a separate file for length.

use proptest::prelude::*;

use super::*;
use crate::record::Via;
use crate::record::report::EgressTotal;

/// Rows of the report that the ledger keeps.
const LEDGER: usize = 512;

fn subject(host: &str, port: u16) -> Subject {
    Subject {
        via: Via::Transparent,
        host: host.into(),
        port,
        original: None,
        method: "CONNECT".into(),
        url: None,
    }
}

fn pass(sums: &mut EgressSums, host: &str, verdict: &Verdict, up: u64) {
    let key = sums.open(&subject(host, 443), verdict);
    sums.close(&key, up, 0);
}

/// Returns whether a report's rows add up to its totals.
fn adds_up(report: &EgressReport) -> bool {
    let without = EgressReport { totals: EgressTotals::default(), ..report.clone() };
    without.totals() == report.totals
}

#[test]
fn rows_are_summed_and_shown_as_a_table() {
    let mut sums = EgressSums::default();
    for _ in 0..2 {
        let key = sums.open(&subject("github.com", 443), &Verdict::Allowed);
        sums.close(&key, 10, 2000);
    }
    sums.count(&subject("evil\u{1b}[2J.example", 0), &Verdict::Refused(RefusalCause::NoRule));
    assert_eq!(
        sums.report(LEDGER, 7).to_string(),
        "destination            verdict            connections  up  down\n\
         github.com:443         allowed                      2  20  4000\n\
         evil\\u{1b}[2J.example  refused (no-rule)            1   0     0\n\
         7 lines were not recorded: too many\n"
    );
}

/// One step of a flood, by its number.
type Flood = fn(&mut EgressSums, u32);

const FLOODS: [(&str, Flood); 10] = [
    ("names that sort first", |sums, number| {
        let verdict = Verdict::Refused(RefusalCause::NoRule);
        sums.count(&subject(&format!("!{number:09}"), 0), &verdict);
    }),
    ("names that sort last", |sums, number| {
        let verdict = Verdict::Refused(RefusalCause::NoRule);
        sums.count(&subject(&format!("~{number:09}"), 0), &verdict);
    }),
    ("long names", |sums, number| {
        let verdict = Verdict::Refused(RefusalCause::Literal);
        sums.count(&subject(&format!("{number}{}", "x".repeat(250)), 0), &verdict);
    }),
    ("ports", |sums, number| {
        let port = u16::try_from(number % 65_536).unwrap();
        sums.count(&subject("10.0.0.1", port), &Verdict::Refused(RefusalCause::Closed));
    }),
    ("causes", |sums, number| {
        let causes = [
            RefusalCause::NoRule,
            RefusalCause::Port,
            RefusalCause::Literal,
            RefusalCause::NotTls,
            RefusalCause::SniMissing,
            RefusalCause::Closed,
            RefusalCause::ForgedSource,
            RefusalCause::ClientGone,
            RefusalCause::Protocol("UDP"),
            RefusalCause::Resolve(format!("reason {number}")),
        ];
        let cause = causes[number as usize % causes.len()].clone();
        sums.count(&subject(&number.to_string(), 1), &Verdict::Refused(cause));
    }),
    ("the name itself, refused", |sums, number| {
        let port = u16::try_from(number % 65_536).unwrap();
        sums.count(&subject("upload.example", port), &Verdict::Refused(RefusalCause::Port));
    }),
    ("the name of the row for others", |sums, _| {
        sums.count(&subject(OTHERS, 0), &Verdict::Refused(RefusalCause::NoRule));
    }),
    ("allowed names", |sums, number| {
        pass(sums, &format!("{number:09}.example"), &Verdict::Allowed, u64::from(number % 1000));
    }),
    ("audited lookups", |sums, number| {
        let verdict = Verdict::WouldRefuse(RefusalCause::NoRule);
        sums.count(&subject(&format!("{number:09}.example"), 0), &verdict);
    }),
    ("audited names", |sums, number| {
        pass(
            sums,
            &format!("{number:09}.example"),
            &Verdict::WouldRefuse(RefusalCause::NoRule),
            999,
        );
    }),
];

#[test]
fn allowed_traffic_survives_any_flood() {
    for (what, flood) in FLOODS {
        for at in [0, 9_999, 19_999] {
            let mut sums = EgressSums::default();
            for number in 0..20_000 {
                flood(&mut sums, number);
                if number == at {
                    pass(&mut sums, "upload.example", &Verdict::Allowed, 3_000_000);
                }
            }
            let whole = sums.report(usize::MAX, 0);
            assert!(whole.rows.len() <= PASSED_ROWS + 32 * (REFUSED_ROWS + 1), "{what}");
            for report in [whole, sums.report(LEDGER, 0), sums.report(64, 0)] {
                let first = &report.rows[0];
                assert_eq!((&*first.host, first.up), ("upload.example", 3_000_000), "{what}");
                assert!(adds_up(&report), "{what}");
                let EgressTotals { allowed, would_refuse, refused } = report.totals;
                let sum = allowed.connections + would_refuse.connections + refused.connections;
                assert_eq!(sum, 20_001, "{what}");
            }
        }
    }
}

#[test]
fn a_flood_of_one_cause_keeps_the_first_of_every_other() {
    let mut sums = EgressSums::default();
    for number in 0..5_000 {
        FLOODS[0].1(&mut sums, number);
    }
    sums.count(&subject("169.254.169.254", 80), &Verdict::Refused(RefusalCause::Literal));
    let report = sums.report(64, 0);
    assert!(report.rows.iter().any(|row| row.host == "169.254.169.254"), "{report}");
    assert_eq!(report.totals.refused.connections, 5_001);
    assert_eq!(report.omitted + 64, 5_001);
}

#[test]
fn lookups_take_no_rows_of_traffic() {
    let mut sums = EgressSums::default();
    pass(&mut sums, "small.example", &Verdict::Allowed, 1);
    for number in 0..20_000 {
        sums.count(
            &subject(&format!("{number}.example"), 0),
            &Verdict::WouldRefuse(RefusalCause::NoRule),
        );
    }
    let report = sums.report(usize::MAX, 0);
    assert_eq!((&*report.rows[0].host, report.rows[0].up), ("small.example", 1));
    assert!(report.rows.len() <= REFUSED_ROWS + 2, "{}", report.rows.len());
    assert!(adds_up(&report));
}

#[test]
fn the_row_of_an_open_connection_is_kept_for_its_bytes() {
    let mut sums = EgressSums::default();
    let key = sums.open(&subject("slow.example", 443), &Verdict::Allowed);
    for number in 0..10_000 {
        pass(&mut sums, &format!("{number}.example"), &Verdict::Allowed, 1 << 20);
    }
    sums.close(&key, 2 << 20, 5);
    let report = sums.report(LEDGER, 0);
    assert_eq!((&*report.rows[0].host, report.rows[0].up), ("slow.example", 2 << 20));
    let total = EgressTotal { connections: 10_001, up: (10_000 << 20) + (2 << 20), down: 5 };
    assert_eq!(report.totals.allowed, total);
}

proptest! {
    #[test]
    fn any_report_adds_up_within_its_rows(
        tries in prop::collection::vec((0_u8..40, 0_u16..4, 0_usize..5, 0_u64..1000), 0..300),
        most in 0_usize..50,
    ) {
        let verdicts = [
            Verdict::Allowed,
            Verdict::WouldRefuse(RefusalCause::NoRule),
            Verdict::Refused(RefusalCause::NoRule),
            Verdict::Refused(RefusalCause::Port),
            Verdict::Refused(RefusalCause::Closed),
        ];
        let mut sums = EgressSums::default();
        for (host, port, verdict, bytes) in &tries {
            let subject = subject(&host.to_string(), *port);
            let verdict = &verdicts[*verdict];
            if verdict.passes() {
                let key = sums.open(&subject, verdict);
                sums.close(&key, *bytes, 1);
            } else {
                sums.count(&subject, verdict);
            }
        }
        let report = sums.report(most, 0);
        prop_assert!(adds_up(&report));
        let named = report.rows.iter().filter(|row| row.host != OTHERS).count();
        prop_assert!(named <= most);
        prop_assert_eq!(named as u64 + report.omitted, sums.rows_started());
    }
}
