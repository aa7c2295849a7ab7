//! The minimal init: loads the agent's drivers and powers off. The agent's own cost is the
//! difference to this.

use mayfly_guest::power::{self, EndMode};

fn main() {
    if let Err(error) = mayfly_guest::boot::load_drivers() {
        power::log_error(&error);
    }
    power::end(EndMode::PowerOff);
}
