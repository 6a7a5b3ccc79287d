//! DNS as the servers answer it.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::checks::{Dns, HOST_NAME, HOST4, HOST6, PORTAL4, PORTAL6};

/// How long an answer may be kept, in seconds.
const LIFETIME: u32 = 60;

/// The answer to `question`, if there is to be one.
pub(super) fn answer(question: &[u8], how: Dns) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    if asked.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&asked.metadata);
    reply.metadata.recursion_available = true;
    for query in &asked.queries {
        let name = query.name().to_ascii();
        let known = name.trim_end_matches('.').eq_ignore_ascii_case(HOST_NAME);
        let addresses = match how {
            Dns::Silent => return None,
            Dns::Portal => [PORTAL4, PORTAL6],
            Dns::Right if known => [HOST4, HOST6],
            Dns::Right | Dns::NoName => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                continue;
            }
        };
        for data in addresses.map(data) {
            let wanted = query.query_type();
            if wanted == data.record_type() || wanted == RecordType::ANY {
                reply.add_answer(Record::from_rdata(query.name().clone(), LIFETIME, data));
            }
        }
    }
    reply.add_queries(asked.queries);
    reply.to_vec().ok()
}

fn data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}
