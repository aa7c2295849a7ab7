//! Builds the stub's responses: a pure function of the query, the policy and the names assigned so
//! far.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::host::{HostError, HostName};
use crate::names::NameTable;
use crate::policy::Policy;
use crate::verdict::{RefusalCause, Verdict};

/// TTL of a response. Short, so that names in use are looked up again and keep their address.
const TTL_SECONDS: u32 = 60;

/// Maximum length of a query. One question with EDNS needs 300 bytes.
pub const MAX_QUERY: usize = 4096;

/// The advertised EDNS payload size: passes any link unfragmented (RFC 9715).
const EDNS_PAYLOAD: u16 = 1232;

/// The EDNS option for extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// The extended error "Blocked": refused by the operator's policy.
const BLOCKED: u16 = 15;

/// The response code for a refused name. Clients treat REFUSED as a server failure and retry for
/// seconds; NXDOMAIN is final at once. Without a SOA record nobody may cache it (RFC 2308, section
/// 5).
const NOT_ALLOWED: ResponseCode = ResponseCode::NXDomain;

/// A response, and the data to record about the query.
#[derive(Debug)]
pub struct DnsResponse {
    /// The message to send.
    pub bytes: Vec<u8>,
    /// The queried name, as far as it is known.
    pub queried_name: String,
    /// The verdict on the lookup.
    pub verdict: Verdict,
}

/// Returns the queried name, if the policy allows its lookup.
pub fn allowed_name(query: &[u8], policy: &Policy) -> Option<HostName> {
    if query.len() > MAX_QUERY {
        return None;
    }
    let message = Message::from_vec(query).ok()?;
    let (_, name) = question(&message).ok()?;
    policy.decide_lookup(&name).passes().then_some(name)
}

/// Responds to a query as if every name that the policy allows existed.
pub fn respond(query: &[u8], policy: &Policy, names: &mut NameTable) -> Option<DnsResponse> {
    respond_with_lookup(query, policy, names, Ok(()))
}

/// Responds to a query. `found` holds the error if an allowed name could not be resolved. Returns
/// `None` if the message is not a query, so that even an error response would be wrong.
pub fn respond_with_lookup(
    query: &[u8],
    policy: &Policy,
    names: &mut NameTable,
    found: Result<(), RefusalCause>,
) -> Option<DnsResponse> {
    if query.len() < 12 || query.len() > MAX_QUERY || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(message) = Message::from_vec(query) else {
        let id = u16::from_be_bytes([query[0], query[1]]);
        let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return finish(
            &reply,
            String::new(),
            Verdict::Refused(RefusalCause::Dns("malformed message")),
        );
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
        // A name with an internal address is reported like a nonexistent one: the difference would
        // reveal this host's network.
        reply.metadata.response_code = match &cause {
            RefusalCause::Resolve(_) => ResponseCode::ServFail,
            _ => NOT_ALLOWED,
        };
        return finish(&reply, name.to_string(), Verdict::Refused(cause));
    } else if matches!(question.query_type(), RecordType::A | RecordType::ANY) {
        let address = RData::A(A(names.address_of(&name)));
        reply.add_answer(Record::from_rdata(question.name().clone(), TTL_SECONDS, address));
    }
    finish(&reply, name.to_string(), verdict)
}

fn finish(reply: &Message, queried_name: String, verdict: Verdict) -> Option<DnsResponse> {
    Some(DnsResponse { bytes: reply.to_vec().ok()?, queried_name, verdict })
}

/// Returns an empty response without an error.
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

/// Returns the only question of a query and its name, or the error code and the cause.
fn question(message: &Message) -> Result<(&Query, HostName), (ResponseCode, RefusalCause)> {
    let cause = |code, text| Err((code, RefusalCause::Dns(text)));
    if message.metadata.op_code != OpCode::Query {
        return cause(ResponseCode::NotImp, "not a standard query");
    }
    if message.metadata.message_type != MessageType::Query {
        return cause(ResponseCode::FormErr, "a response, not a query");
    }
    let [question] = message.queries.as_slice() else {
        return cause(ResponseCode::FormErr, "not exactly one question");
    };
    if !message.answers.is_empty() || !message.authorities.is_empty() {
        return cause(ResponseCode::FormErr, "a query with answers");
    }
    if question.query_class() != DNSClass::IN {
        return cause(ResponseCode::Refused, "a class other than IN");
    }
    match host_name(question.name()) {
        Ok(name) => Ok((question, name)),
        // The root exists.
        Err(HostError::Empty) => Err((ResponseCode::Refused, RefusalCause::Host(HostError::Empty))),
        Err(error) => Err((NOT_ALLOWED, RefusalCause::Host(error))),
    }
}

/// Converts the name of a question to a host name. A label may contain any bytes, even dots.
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

/// Adds the reason, if the client supports EDNS.
fn explain(reply: &mut Message, policy: &Policy, cause: &RefusalCause) {
    if let Some(edns) = &mut reply.edns {
        let mut data = BLOCKED.to_be_bytes().to_vec();
        // A policy name has at most 64 bytes, so the response stays below 512.
        data.extend(format!("policy {} refused: {}", policy.name, cause.code()).into_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::address::AddressClass;

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
        let response =
            respond(&message.to_vec().unwrap(), &policy(), &mut NameTable::default()).unwrap();
        assert!(response.bytes.len() <= 512);
        (Message::from_vec(&response.bytes).unwrap(), response.verdict)
    }

    #[test]
    fn an_allowed_name_gets_a_synthetic_address() {
        let asked = query("A.Example.Com.", RecordType::A);
        let (reply, verdict) = ask(&asked);
        assert_eq!(verdict, Verdict::Allowed);
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
        // Clients that use the case as a nonce compare it.
        assert_eq!(reply.queries, asked.queries);
        assert_eq!(reply.queries[0].name().to_ascii(), "A.Example.Com.");
        let [record] = reply.answers.as_slice() else { panic!("{reply:?}") };
        assert_eq!(record.data, RData::A(A::new(198, 18, 0, 1)));
    }

    #[test]
    fn an_allowed_name_has_only_an_address() {
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB, RecordType::TXT] {
            let (reply, verdict) = ask(&query("a.example.com.", kind));
            assert_eq!(verdict, Verdict::Allowed);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
            assert!(reply.answers.is_empty(), "{kind}");
        }
    }

    #[test]
    fn any_other_name_is_refused_for_every_type() {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::NULL] {
            let (reply, verdict) = ask(&query("c2VjcmV0.evil.example.", kind));
            assert_eq!(verdict, Verdict::Refused(RefusalCause::NoRule), "{kind}");
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{kind}");
            assert!(reply.authorities.is_empty(), "nobody may cache it");
            assert!(reply.answers.is_empty() && reply.edns.is_none(), "{kind}");
        }
    }

    #[test]
    fn a_client_with_edns_gets_the_reason() {
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
    fn an_unresolvable_name_does_not_reveal_its_address_class() {
        let mut asked = query("a.example.com.", RecordType::A);
        asked.set_edns(Edns::new());
        let bytes = asked.to_vec().unwrap();
        let mut responses = Vec::new();
        for (cause, code) in [
            (RefusalCause::NoSuchName, ResponseCode::NXDomain),
            (RefusalCause::Address(AddressClass::Private), ResponseCode::NXDomain),
            (RefusalCause::Address(AddressClass::Loopback), ResponseCode::NXDomain),
            (RefusalCause::Address(AddressClass::Metadata), ResponseCode::NXDomain),
            (RefusalCause::Resolve("timed out".into()), ResponseCode::ServFail),
        ] {
            let mut names = NameTable::default();
            let response =
                respond_with_lookup(&bytes, &policy(), &mut names, Err(cause.clone())).unwrap();
            assert_eq!(response.verdict, Verdict::Refused(cause));
            let reply = Message::from_vec(&response.bytes).unwrap();
            assert_eq!(reply.metadata.response_code, code);
            assert!(reply.answers.is_empty());
            if code == ResponseCode::NXDomain {
                responses.push(response.bytes);
            }
        }
        assert!(responses.windows(2).all(|pair| pair[0] == pair[1]), "responses differ by class");
    }

    #[test]
    fn unsupported_questions_get_an_error() {
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
            Verdict::Refused(RefusalCause::Host(HostError::Empty))
        );
    }

    #[test]
    fn a_dot_within_a_label_is_rejected() {
        let name = Name::from_labels([&b"a.example"[..], b"com"]).unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(name, RecordType::A));
        assert_eq!(ask(&message).1, Verdict::Refused(RefusalCause::Host(HostError::Label)));
    }

    #[test]
    fn a_malformed_query_gets_an_error_and_a_response_gets_none() {
        let mut names = NameTable::default();
        let mut bytes = query("a.example.com.", RecordType::A).to_vec().unwrap();
        bytes.truncate(20);
        let reply = Message::from_vec(&respond(&bytes, &policy(), &mut names).unwrap().bytes);
        assert_eq!(reply.unwrap().metadata.response_code, ResponseCode::FormErr);
        assert!(respond(&bytes[..11], &policy(), &mut names).is_none());
        bytes[2] |= 0x80;
        assert!(respond(&bytes, &policy(), &mut names).is_none());
        assert!(respond(&[0; MAX_QUERY + 1], &policy(), &mut names).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_stub(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut names = NameTable::default();
            if let Some(response) = respond(&bytes, &policy(), &mut names) {
                prop_assert!(response.bytes.len() <= 512 + bytes.len());
                prop_assert!(Message::from_vec(&response.bytes).is_ok());
            }
        }

        #[test]
        fn a_damaged_query_never_gets_a_refused_name_an_address(
            at in 12_usize..60, byte in any::<u8>()
        ) {
            let mut bytes = query("evil.example.", RecordType::A).to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Some(found) = respond(&bytes, &policy(), &mut NameTable::default())
                && let Ok(reply) = Message::from_vec(&found.bytes)
            {
                prop_assert!(reply.answers.is_empty());
            }
        }
    }
}
