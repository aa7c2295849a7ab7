//! Treats any bytes as packets of a guest: parsed connection attempts survive a round trip, and the
//! table of pending connections keeps its bound for any sequence of events.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mayfly_egress::describe_packet;
use mayfly_egress::pending::{PendingTable, SynState, TcpSegment, replay_syn};

const CAPACITY: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let mut table: PendingTable<Rc<()>, ()> = PendingTable::new(CAPACITY);
    let resource = Rc::new(());
    let mut rest = bytes;
    // The step, the packet's type, its length, and the packet.
    while let [step, kind, length, after @ ..] = rest {
        let (packet, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let ether_type = match kind {
            0 => 0x0800,
            1 => 0x86dd,
            other => u16::from(*other) << 3,
        };
        if let Some(text) = describe_packet(ether_type, packet) {
            assert!(text.len() < 100, "{text}");
        }
        match TcpSegment::parse(packet) {
            Some(TcpSegment::Syn(syn)) => {
                // The replayed packet is the same attempt.
                let Some(TcpSegment::Syn(read)) = TcpSegment::parse(&replay_syn(&syn)) else {
                    panic!()
                };
                assert_eq!(read.endpoints(), syn.endpoints());
                let to = *syn.endpoints().destination.ip();
                if table.observe(&syn) == SynState::New && table.has_room_for(to) {
                    if table.is_full() {
                        assert!(table.evict_oldest().is_some());
                    }
                    let ticket = table.insert(syn, Rc::clone(&resource));
                    match step % 4 {
                        0 => assert!(table.mark_ready(ticket, ()).is_ok()),
                        1 => assert!(table.remove(ticket).is_some()),
                        _ => {}
                    }
                } else if step % 4 == 3 {
                    table.take(&syn.endpoints());
                }
            }
            Some(TcpSegment::Reset(endpoints)) => drop(table.remove_by_endpoints(&endpoints)),
            None => {}
        }
        assert!(table.len() <= CAPACITY);
        assert_eq!(Rc::strong_count(&resource), table.len() + 1);
    }
});
