//! Any bytes as packets of a guest: what is an attempt at a connection is read as the stack reads it,
//! and the table of those that are held keeps its bound, whatever comes in whatever order.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use mayfly::egress::attempt;
use mayfly::egress::hold::{Meeting, Segment, Table, again};

const MOST: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let mut table: Table<Rc<()>, ()> = Table::new(MOST);
    let held = Rc::new(());
    let mut rest = bytes;
    // What is to be done, the type of a packet, its length, and the packet.
    while let [step, kind, length, after @ ..] = rest {
        let (packet, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let ether_type = match kind {
            0 => 0x0800,
            1 => 0x86dd,
            other => u16::from(*other) << 3,
        };
        if let Some(said) = attempt(ether_type, packet) {
            assert!(said.len() < 100, "{said}");
        }
        match Segment::read(packet) {
            Some(Segment::Syn(syn)) => {
                // The packet that is made of it is the same attempt.
                let Some(Segment::Syn(read)) = Segment::read(&again(&syn)) else { panic!() };
                assert_eq!(read.ends(), syn.ends());
                let to = *syn.ends().to.ip();
                if table.meet(&syn) == Meeting::New && table.may_add(to) {
                    if table.is_full() {
                        assert!(table.displace().is_some());
                    }
                    let ticket = table.insert(syn, Rc::clone(&held));
                    match step % 4 {
                        0 => assert!(table.ready(ticket, ()).is_ok()),
                        1 => assert!(table.remove(ticket).is_some()),
                        _ => {}
                    }
                } else if step % 4 == 3 {
                    table.take(&syn.ends());
                }
            }
            Some(Segment::Reset(ends)) => drop(table.forget(&ends)),
            None => {}
        }
        assert!(table.len() <= MOST);
        assert_eq!(Rc::strong_count(&held), table.len() + 1);
    }
});
