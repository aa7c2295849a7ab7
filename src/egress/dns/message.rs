//! What the stub answers: a pure function of the query, the policy and the names given so far.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::egress::host::{HostError, HostName};
use crate::egress::names::Names;
use crate::egress::policy::Policy;
use crate::egress::verdict::{Cause, Verdict};

/// How long a client may keep an answer. Short, so that a name in use is seen to be in use and
/// keeps its address.
const TTL_SECONDS: u32 = 60;

/// The longest message that is looked at. A query with one question and EDNS needs 300.
pub const MAX_QUERY: usize = 4096;

/// The payload size that EDNS announces: what passes any link unfragmented (RFC 9715).
const EDNS_PAYLOAD: u16 = 1232;

/// The EDNS option for extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// The extended error "Blocked": the operator's policy has it so.
const BLOCKED: u16 = 15;

/// The answer for a name that may not be looked up. Clients take REFUSED for a server's trouble and
/// ask again, for seconds; that a name doesn't exist is final at once. Without a SOA record beside
/// it nobody may keep it (RFC 2308, section 5).
const NOT_ALLOWED: ResponseCode = ResponseCode::NXDomain;

/// An answer, and what there is to record about the question.
#[derive(Debug)]
pub struct Answer {
    /// The message to send.
    pub bytes: Vec<u8>,
    /// The name that was asked for, as well as it can be told, and the verdict.
    pub asked: String,
    /// Whether the name may be looked up.
    pub verdict: Verdict,
}

/// The name that a query asks for, where the policy lets it be looked up.
pub fn allowed_name(query: &[u8], policy: &Policy) -> Option<HostName> {
    if query.len() > MAX_QUERY {
        return None;
    }
    let message = Message::from_vec(query).ok()?;
    let (_, name) = question(&message).ok()?;
    policy.decide_lookup(&name).passes().then_some(name)
}

/// Answers a query as if every name that the policy allows existed.
pub fn answer(query: &[u8], policy: &Policy, names: &mut Names) -> Option<Answer> {
    answer_found(query, policy, names, Ok(()))
}

/// Answers a query. `found` says why an allowed name leads nowhere, where it doesn't. `None` where
/// the query isn't even that, so that an answer would be wrong, too.
pub fn answer_found(
    query: &[u8],
    policy: &Policy,
    names: &mut Names,
    found: Result<(), Cause>,
) -> Option<Answer> {
    if query.len() < 12 || query.len() > MAX_QUERY || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(message) = Message::from_vec(query) else {
        let id = u16::from_be_bytes([query[0], query[1]]);
        let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return finish(&reply, String::new(), Verdict::Refused(Cause::Dns("it is malformed")));
    };
    let mut reply = reply_to(&message);
    let (question, name) = match question(&message) {
        Ok(found) => found,
        Err((code, cause)) => {
            reply.metadata.response_code = code;
            let asked = message.queries.first().map(|query| query.name().to_ascii());
            return finish(&reply, asked.unwrap_or_default(), Verdict::Refused(cause));
        }
    };
    let verdict = policy.decide_lookup(&name);
    if let Verdict::Refused(cause) = &verdict {
        reply.metadata.response_code = NOT_ALLOWED;
        explain(&mut reply, policy, cause);
    } else if let Err(cause) = found {
        // A name that leads inside is told like one that doesn't exist: which of them it is says
        // something of this host's network.
        reply.metadata.response_code = match &cause {
            Cause::Resolve(_) => ResponseCode::ServFail,
            _ => NOT_ALLOWED,
        };
        return finish(&reply, name.to_string(), Verdict::Refused(cause));
    } else if matches!(question.query_type(), RecordType::A | RecordType::ANY) {
        let address = RData::A(A(names.address_of(&name)));
        reply.add_answer(Record::from_rdata(question.name().clone(), TTL_SECONDS, address));
    }
    finish(&reply, name.to_string(), verdict)
}

fn finish(reply: &Message, asked: String, verdict: Verdict) -> Option<Answer> {
    Some(Answer { bytes: reply.to_vec().ok()?, asked, verdict })
}

/// An empty answer without error.
fn reply_to(message: &Message) -> Message {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    if message.queries.len() == 1 {
        reply.queries.clone_from(&message.queries);
    }
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        reply.edns = Some(edns);
    }
    reply
}

/// The one question of a query and the name in it; the error code and the cause where there is
/// none that could be answered.
fn question(message: &Message) -> Result<(&Query, HostName), (ResponseCode, Cause)> {
    let cause = |code, text| Err((code, Cause::Dns(text)));
    if message.metadata.op_code != OpCode::Query {
        return cause(ResponseCode::NotImp, "it is no ordinary query");
    }
    if message.metadata.message_type != MessageType::Query {
        return cause(ResponseCode::FormErr, "it is an answer");
    }
    let [question] = message.queries.as_slice() else {
        return cause(ResponseCode::FormErr, "it has not exactly one question");
    };
    if !message.answers.is_empty() || !message.authorities.is_empty() {
        return cause(ResponseCode::FormErr, "it has answers in it");
    }
    if question.query_class() != DNSClass::IN {
        return cause(ResponseCode::Refused, "its class is not IN");
    }
    match host_name(question.name()) {
        Ok(name) => Ok((question, name)),
        // The root does exist.
        Err(HostError::Empty) => Err((ResponseCode::Refused, Cause::Host(HostError::Empty))),
        Err(error) => Err((NOT_ALLOWED, Cause::Host(error))),
    }
}

/// The name of a question as a host's. A label's bytes may be anything, even dots.
fn host_name(name: &Name) -> Result<HostName, HostError> {
    let mut labels = Vec::new();
    for label in name {
        if label.contains(&b'.') {
            return Err(HostError::Label);
        }
        labels.push(std::str::from_utf8(label).map_err(|_| HostError::Character('\u{fffd}'))?);
    }
    HostName::parse(&labels.join("."))
}

/// Tells why, where the client understands extensions at all.
fn explain(reply: &mut Message, policy: &Policy, cause: &Cause) {
    if let Some(edns) = &mut reply.edns {
        let mut data = BLOCKED.to_be_bytes().to_vec();
        // A policy's name has 64 bytes at most: the whole answer stays below 512.
        data.extend(format!("policy {} refused: {}", policy.name, cause.code()).into_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::egress::address::Class;

    fn policy() -> Policy {
        let draft = toml::from_str(r#"allow = [{ host = "*.example.com" }]"#).unwrap();
        Policy::check(Path::new("f"), "ci", &draft).unwrap()
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(message: &Message) -> (Message, Verdict) {
        let answer = answer(&message.to_vec().unwrap(), &policy(), &mut Names::default()).unwrap();
        assert!(answer.bytes.len() <= 512);
        (Message::from_vec(&answer.bytes).unwrap(), answer.verdict)
    }

    #[test]
    fn an_allowed_name_gets_a_synthetic_address() {
        let asked = query("A.Example.Com.", RecordType::A);
        let (reply, verdict) = ask(&asked);
        assert_eq!(verdict, Verdict::Allowed);
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
        // Clients that mix case as a nonce compare it.
        assert_eq!(reply.queries, asked.queries);
        assert_eq!(reply.queries[0].name().to_ascii(), "A.Example.Com.");
        let [record] = reply.answers.as_slice() else { panic!("{reply:?}") };
        assert_eq!(record.data, RData::A(A::new(198, 18, 0, 1)));
    }

    #[test]
    fn an_allowed_name_has_nothing_but_an_address() {
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::TXT] {
            let (reply, verdict) = ask(&query("a.example.com.", kind));
            assert_eq!(verdict, Verdict::Allowed);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
            assert!(reply.answers.is_empty(), "{kind}");
        }
    }

    #[test]
    fn any_other_name_is_refused_whatever_is_asked() {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::NULL] {
            let (reply, verdict) = ask(&query("c2VjcmV0.evil.example.", kind));
            assert_eq!(verdict, Verdict::Refused(Cause::NoRule), "{kind}");
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{kind}");
            assert!(reply.authorities.is_empty(), "nobody may keep it");
            assert!(reply.answers.is_empty() && reply.edns.is_none(), "{kind}");
        }
    }

    #[test]
    fn a_client_with_edns_is_told_why() {
        let mut asked = query("evil.example.", RecordType::A);
        asked.set_edns(Edns::new());
        let (reply, _) = ask(&asked);
        let edns = reply.edns.unwrap();
        let Some(EdnsOption::Unknown(15, data)) = edns.option(EXTENDED_ERROR.into()) else {
            panic!("{edns:?}")
        };
        assert_eq!(data[..2], [0, 15]);
        assert_eq!(&data[2..], b"policy ci refused: no-rule");
    }

    #[test]
    fn a_name_that_leads_nowhere_is_told_so_without_its_class() {
        let mut asked = query("a.example.com.", RecordType::A);
        asked.set_edns(Edns::new());
        let bytes = asked.to_vec().unwrap();
        let mut told = Vec::new();
        for (cause, code) in [
            (Cause::NoSuchName, ResponseCode::NXDomain),
            (Cause::Address(Class::Private), ResponseCode::NXDomain),
            (Cause::Address(Class::Loopback), ResponseCode::NXDomain),
            (Cause::Address(Class::Metadata), ResponseCode::NXDomain),
            (Cause::Resolve("timed out".into()), ResponseCode::ServFail),
        ] {
            let mut names = Names::default();
            let answer = answer_found(&bytes, &policy(), &mut names, Err(cause.clone())).unwrap();
            assert_eq!(answer.verdict, Verdict::Refused(cause));
            let reply = Message::from_vec(&answer.bytes).unwrap();
            assert_eq!(reply.metadata.response_code, code);
            assert!(reply.answers.is_empty());
            if code == ResponseCode::NXDomain {
                told.push(answer.bytes);
            }
        }
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "answers differ by class");
    }

    #[test]
    fn odd_questions_are_answered_with_an_error() {
        let mut two = query("a.example.com.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(ask(&two).0.metadata.response_code, ResponseCode::FormErr);
        let mut update = query("a.example.com.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(ask(&update).0.metadata.response_code, ResponseCode::NotImp);
        let mut chaos = query("a.example.com.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(ask(&chaos).0.metadata.response_code, ResponseCode::Refused);
        assert_eq!(
            ask(&query(".", RecordType::NS)).1,
            Verdict::Refused(Cause::Host(HostError::Empty))
        );
    }

    #[test]
    fn a_dot_within_a_label_makes_no_other_name() {
        let name = Name::from_labels([&b"a.example"[..], b"com"]).unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(name, RecordType::A));
        assert_eq!(ask(&message).1, Verdict::Refused(Cause::Host(HostError::Label)));
    }

    #[test]
    fn a_malformed_query_gets_an_error_and_what_is_none_gets_nothing() {
        let mut names = Names::default();
        let mut bytes = query("a.example.com.", RecordType::A).to_vec().unwrap();
        bytes.truncate(20);
        let reply = Message::from_vec(&answer(&bytes, &policy(), &mut names).unwrap().bytes);
        assert_eq!(reply.unwrap().metadata.response_code, ResponseCode::FormErr);
        assert!(answer(&bytes[..11], &policy(), &mut names).is_none());
        bytes[2] |= 0x80;
        assert!(answer(&bytes, &policy(), &mut names).is_none());
        assert!(answer(&[0; MAX_QUERY + 1], &policy(), &mut names).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_stub(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut names = Names::default();
            if let Some(answer) = answer(&bytes, &policy(), &mut names) {
                prop_assert!(answer.bytes.len() <= 512 + bytes.len());
                prop_assert!(Message::from_vec(&answer.bytes).is_ok());
            }
        }

        #[test]
        fn a_damaged_query_never_gets_a_refused_name_an_address(
            at in 12_usize..60, byte in any::<u8>()
        ) {
            let mut bytes = query("evil.example.", RecordType::A).to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Some(found) = answer(&bytes, &policy(), &mut Names::default())
                && let Ok(reply) = Message::from_vec(&found.bytes)
            {
                prop_assert!(reply.answers.is_empty());
            }
        }
    }
}
