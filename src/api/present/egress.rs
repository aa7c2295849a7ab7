//! What a job's microVM reached and was refused.

use super::{Tone, Toned, bytes, count};
use crate::types::{EgressView, Explanation};

/// Returns how many connections of a job's microVM had which verdict, refusals first.
pub fn verdicts(explanation: &Explanation) -> Vec<Toned> {
    let Some(egress) = &explanation.egress else {
        let none = if explanation.job.state.is_over() { "none" } else { "none so far" };
        return vec![Toned { text: none.to_owned(), tone: Tone::Plain }];
    };
    let counts = [
        (egress.refused, "refused", Tone::Bad),
        (egress.would_refuse, "would be refused", Tone::Warning),
        (egress.allowed, "allowed", Tone::Good),
    ];
    // Nothing refused is not worth a word; nothing allowed is.
    let shown = counts.into_iter().filter(|(count, _, tone)| *count > 0 || *tone == Tone::Good);
    shown.map(|(count, word, tone)| Toned { text: format!("{count} {word}"), tone }).collect()
}

/// Returns what a job's microVM sent and received, and what to know about these figures.
pub fn traffic(explanation: &Explanation) -> Vec<String> {
    let Some(egress) = &explanation.egress else { return Vec::new() };
    let EgressView { would_refuse, up, down, omitted, unrecorded, .. } = egress;
    let mut lines = vec![format!("{} sent, {} received", bytes(*up), bytes(*down))];
    if *would_refuse > 0 {
        lines.push("what would be refused was allowed: the policy is not enforced".to_owned());
    }
    if *omitted > 0 {
        let omitted = count(*omitted, "destination");
        lines.push(format!("{omitted} not listed, but counted in the totals and in (others)"));
    }
    if *unrecorded > 0 {
        let missing = count(*unrecorded, "line");
        lines.push(format!("{missing} missing from the egress record: there were too many"));
    }
    lines
}

/// The headings of the destinations.
pub const DESTINATION_HEADINGS: [&str; 6] =
    ["Destination", "Verdict", "Cause", "Attempts", "Sent", "Received"];

/// Returns the rows of the first destinations, and how to list the others if there are more.
pub fn destinations(explanation: &Explanation, limit: usize) -> (Vec<[String; 6]>, Option<String>) {
    let egress = explanation.egress.iter();
    let mut all: Vec<_> = egress.flat_map(|egress| &egress.destinations).collect();
    // Refusals first: people look for them.
    all.sort_by_key(|one| (verdict_tone(&one.verdict), std::cmp::Reverse(one.connections)));
    let more = all.len().saturating_sub(limit);
    let more = (more > 0).then(|| {
        let more = count(more as u64, "destination");
        format!("{more} more: mayfly explain --json {}", explanation.job.id)
    });
    let rows = all.into_iter().take(limit).map(|one| {
        let port = if one.port == 0 { String::new() } else { format!(":{}", one.port) };
        [
            format!("{}{port}", one.host),
            one.verdict.clone(),
            one.cause.clone().unwrap_or_default(),
            one.connections.to_string(),
            bytes(one.up),
            bytes(one.down),
        ]
    });
    (rows.collect(), more)
}

/// Returns the tone of a verdict.
pub fn verdict_tone(verdict: &str) -> Tone {
    match verdict {
        "allowed" => Tone::Good,
        "refused" => Tone::Bad,
        _ => Tone::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::JobState;

    #[test]
    fn egress_has_totals_of_all_and_rows_of_the_refused_first() {
        let row = |host: &str, verdict: &str, up: u64| {
            serde_json::json!({
                "host": host, "port": 443, "verdict": verdict, "connections": 1, "up": up, "down": 7,
            })
        };
        let mut rows = vec![row("up.example", "allowed", 3 << 20), row("x", "would-refuse", 1)];
        rows.resize(30, row("evil.example", "refused", 0));
        let egress = serde_json::json!({
            "allowed": 1, "refused": 600, "would_refuse": 2, "up": 3 << 20, "down": 7,
            "omitted": 571, "unrecorded": 1, "destinations": rows,
        });
        let mut explanation = super::super::tests::explanation(JobState::Finished);
        assert_eq!(verdicts(&explanation)[0].text, "none");
        explanation.egress = serde_json::from_value(egress).unwrap();
        let counts: Vec<_> = verdicts(&explanation).into_iter().map(|one| one.text).collect();
        assert_eq!(counts, ["600 refused", "2 would be refused", "1 allowed"]);
        assert_eq!(
            traffic(&explanation),
            [
                "3 MiB sent, 7 B received",
                "what would be refused was allowed: the policy is not enforced",
                "571 destinations not listed, but counted in the totals and in (others)",
                "1 line missing from the egress record: there were too many",
            ]
        );
        let (all, more) = destinations(&explanation, 30);
        assert_eq!((all.len(), more), (30, None));
        let places = [0, 28, 29].map(|index| all[index][0].as_str());
        assert_eq!(places, ["evil.example:443", "x:443", "up.example:443"]);
        assert_eq!(all[29][1..], ["allowed", "", "1", "3 MiB", "7 B"]);
        let (first, more) = destinations(&explanation, 20);
        assert_eq!(first, all[..20]);
        assert_eq!(more.unwrap(), "10 destinations more: mayfly explain --json 4");
    }
}
