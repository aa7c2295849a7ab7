//! The least that can be booted: loads the drivers that the agent loads, and powers off. What the
//! agent takes beyond this is its own.

use mayfly_guest::power::{self, Ending};

fn main() {
    if let Err(error) = mayfly_guest::boot::load_drivers() {
        power::say(&error);
    }
    power::end(Ending::PowerOff);
}
