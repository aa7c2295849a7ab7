//! A stand-in for the rest of the world, on a virtual clock: machines that boot, fail, register
//! and end, and a forge that gives jobs to runners. It carries out every decision and checks it.
//!
//! Tests and the benchmark share this file, so all it needs comes from the module around it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::{
    Action, Backoff, Blocker, Decision, JobKey, Load, Machine, MachineKey, Millis, Obstacle, Pool,
    PoolId, Registers, Stage, View, Waiting, decide,
};

/// How the world behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    /// The shortest and the longest boot, in milliseconds.
    pub(crate) boot: (u64, u64),
    /// The shortest and the longest job, in milliseconds; most are nearer to the shortest.
    pub(crate) job: (u64, u64),
    /// Of a thousand boots, so many fail.
    pub(crate) boot_failures: u64,
    /// Of a thousand registrations, so many fail.
    pub(crate) registration_failures: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) decisions: u64,
    pub(crate) boots: u64,
    pub(crate) retired: u64,
    pub(crate) served: u64,
    pub(crate) longest_wait: Duration,
    pub(crate) most_machines: usize,
    pub(crate) most_waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Booted(u64),
    BootFailed(u64),
    Listening(u64),
    RegistrationFailed(u64),
    Started(u64),
    Ended(u64),
    Gone(u64),
    Matched(usize),
    Woken,
}

pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) pools: Vec<Pool>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) budget: Load,
    pub(crate) draining: bool,
    pub(crate) tally: Tally,
    /// Jobs that the forge is wrongly believed to have, per pool.
    pub(crate) phantoms: Vec<u32>,
    manners: Manners,
    local: BTreeMap<(Millis, u64), usize>,
    github: Vec<VecDeque<Millis>>,
    backoffs: Vec<Backoff>,
    places: HashMap<u64, usize>,
    events: BinaryHeap<Reverse<(Millis, u64, Happening)>>,
    next: u64,
    random: u64,
}

/// The name of the pool at that place.
pub(crate) fn id(place: usize) -> PoolId {
    PoolId(u32::try_from(place).expect("few pools"))
}

/// The place of the pool of that name.
fn place(pool: PoolId) -> usize {
    pool.0 as usize
}

impl World {
    pub(crate) fn new(mut pools: Vec<Pool>, budget: Load, manners: Manners, seed: u64) -> Self {
        for (place, pool) in pools.iter_mut().enumerate() {
            pool.id = id(place);
        }
        Self {
            now: Millis(0),
            machines: Vec::new(),
            budget,
            draining: false,
            tally: Tally::default(),
            phantoms: vec![0; pools.len()],
            manners,
            local: BTreeMap::new(),
            github: vec![VecDeque::new(); pools.len()],
            backoffs: vec![Backoff::default(); pools.len()],
            places: HashMap::new(),
            events: BinaryHeap::new(),
            next: 0,
            random: seed | 1,
            pools,
        }
    }

    /// A pseudo-random number below `end` (xorshift64*).
    pub(crate) fn random(&mut self, end: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end.max(1)
    }

    pub(crate) fn submit(&mut self, pool: usize) {
        let job = self.fresh();
        self.local.insert((self.now, job), pool);
    }

    pub(crate) fn queue_at_github(&mut self, pool: usize) {
        self.github[pool].push_back(self.now);
        self.after(1000, Happening::Matched(pool));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.local.len() + self.github.iter().map(VecDeque::len).sum::<usize>()
    }

    /// The time of the next event, if there is one.
    pub(crate) fn next_event(&self) -> Option<Millis> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets everything happen up to a moment, with a decision after each event, or after those of
    /// a `tick` together.
    pub(crate) fn run_until(&mut self, end: Millis, tick: Duration) {
        self.decide();
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let together = (self.now + tick).min(end);
            while self.next_event().is_some_and(|at| at <= together) {
                if let Some(Reverse((at, _, happening))) = self.events.pop() {
                    self.now = self.now.max(at);
                    self.happen(happening);
                }
            }
            self.decide();
        }
        self.now = self.now.max(end);
    }

    /// What waits, as it is told.
    pub(crate) fn demand(&self) -> Vec<Waiting> {
        let local = self.local.iter().map(|((since, job), pool)| Waiting::Local {
            job: JobKey(*job),
            pool: id(*pool),
            since: *since,
        });
        let github = self.github.iter().zip(&self.phantoms).enumerate();
        let runners = github.filter_map(|(pool, (queue, phantoms))| {
            let count = u32::try_from(queue.len()).expect("few jobs") + phantoms;
            let since = queue.front().copied().unwrap_or_default();
            (count > 0).then_some(Waiting::Runners { pool: id(pool), count, since })
        });
        local.chain(runners).collect()
    }

    /// One decision: asked for, checked and carried out.
    pub(crate) fn decide(&mut self) -> Decision {
        let demand = self.demand();
        let view = View {
            now: self.now,
            pools: &self.pools,
            machines: &self.machines,
            demand: &demand,
            budget: self.budget,
            draining: self.draining,
        };
        let decision = decide(&view);
        self.check_blockers(&demand, &decision);
        for action in &decision.actions {
            self.carry_out(*action);
        }
        self.check_limits();
        if let Some(wake) = decision.wake {
            assert!(wake > self.now, "to wake at {wake:?}, which is past at {:?}", self.now);
            self.events.push(Reverse((wake, 0, Happening::Woken)));
        }
        self.tally.decisions += 1;
        self.tally.most_machines = self.tally.most_machines.max(self.machines.len());
        self.tally.most_waiting = self.tally.most_waiting.max(self.waiting());
        decision
    }

    /// Each waiting job has an action, or its pool a reason.
    fn check_blockers(&self, demand: &[Waiting], decision: &Decision) {
        let mut unserved = vec![0; self.pools.len()];
        for waiting in demand {
            unserved[place(waiting.pool())] += i64::from(waiting.count());
        }
        for action in &decision.actions {
            if let Action::Assign { machine, .. } | Action::Register { machine } = action {
                let machine = &self.machines[self.places[&machine.0]];
                unserved[place(machine.pool)] -= 1;
            }
        }
        for (pool, unserved) in unserved.into_iter().enumerate() {
            let named = decision.blockers.contains_key(&id(pool));
            assert!(named || unserved <= 0, "{unserved} jobs of pool {pool} wait without a reason");
        }
    }

    fn check_limits(&self) {
        let mut counts = vec![0; self.pools.len()];
        let mut used = Load::default();
        for machine in &self.machines {
            used = used.plus(machine.load);
            counts[place(machine.pool)] += 1;
        }
        assert!(used.processors <= self.budget.processors && used.memory <= self.budget.memory);
        for (pool, count) in self.pools.iter().zip(counts) {
            assert!(count <= pool.max, "{count} machines in a pool of {}", pool.max);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Boot { pool } => {
                let (key, load) = (self.fresh(), self.pools[place(pool)].load);
                let machine = Machine {
                    key: MachineKey(key),
                    pool,
                    load,
                    stage: Stage::Booting,
                    since: self.now,
                };
                self.places.insert(key, self.machines.len());
                self.machines.push(machine);
                let (shortest, longest) = self.manners.boot;
                let time = shortest + self.random(longest - shortest + 1);
                let fails = self.random(1000) < self.manners.boot_failures;
                let next = if fails { Happening::BootFailed } else { Happening::Booted };
                self.after(time, next(key));
                self.tally.boots += 1;
            }
            Action::Assign { machine, job } => {
                self.enter(machine.0, &[Stage::Warm], Stage::Assigned);
                let waiting = self.local.keys().find(|(_, key)| *key == job.0).copied();
                let (since, key) = waiting.expect("a job that waits");
                self.local.remove(&(since, key));
                self.serve(since);
                self.after(100, Happening::Started(machine.0));
            }
            Action::Register { machine } => {
                self.enter(machine.0, &[Stage::Warm], Stage::Registering);
                let fails = self.random(1000) < self.manners.registration_failures;
                let next = if fails { Happening::RegistrationFailed } else { Happening::Listening };
                self.after(500, next(machine.0));
            }
            Action::Retire { machine, .. } => {
                let without_job = [Stage::Booting, Stage::Warm, Stage::Registered];
                self.enter(machine.0, &without_job, Stage::Ending);
                self.after(300, Happening::Gone(machine.0));
                self.tally.retired += 1;
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Booted(key) if self.is(key, Stage::Booting) => {
                let pool = self.enter(key, &[Stage::Booting], Stage::Warm);
                self.backoffs[pool].worked();
                self.pools[pool].boot_obstacle = None;
            }
            Happening::BootFailed(key) if self.is(key, Stage::Booting) => {
                let pool = self.enter(key, &[Stage::Booting], Stage::Ending);
                self.backoffs[pool].failed(self.now);
                let until = self.backoffs[pool].until();
                let why = Blocker::BootsFail("boot_deadline".to_owned());
                self.pools[pool].boot_obstacle = Some(Obstacle { until, why });
                self.after(300, Happening::Gone(key));
            }
            Happening::Listening(key) => {
                let pool = self.enter(key, &[Stage::Registering], Stage::Registered);
                self.after(1000, Happening::Matched(pool));
            }
            Happening::RegistrationFailed(key) => {
                self.enter(key, &[Stage::Registering], Stage::Ending);
                self.after(300, Happening::Gone(key));
            }
            Happening::Started(key) => {
                self.enter(key, &[Stage::Assigned], Stage::Busy);
                self.run(key);
            }
            Happening::Ended(key) => {
                self.enter(key, &[Stage::Busy], Stage::Ending);
                self.after(300, Happening::Gone(key));
            }
            Happening::Gone(key) => {
                let place = self.places.remove(&key).expect("a machine");
                self.machines.swap_remove(place);
                if let Some(moved) = self.machines.get(place) {
                    self.places.insert(moved.key.0, place);
                }
            }
            Happening::Matched(pool) => self.give_jobs(pool),
            Happening::Booted(_) | Happening::BootFailed(_) | Happening::Woken => {}
        }
    }

    /// The forge gives the jobs of a pool to its runners.
    fn give_jobs(&mut self, pool: usize) {
        let idle =
            |machine: &&Machine| machine.pool == id(pool) && machine.stage == Stage::Registered;
        let waiting = self.github[pool].len();
        let runners: Vec<u64> =
            self.machines.iter().filter(idle).take(waiting).map(|one| one.key.0).collect();
        for key in runners {
            if let Some(since) = self.github[pool].pop_front() {
                self.enter(key, &[Stage::Registered], Stage::Busy);
                self.serve(since);
                self.run(key);
            }
        }
    }

    fn run(&mut self, key: u64) {
        let (shortest, longest) = self.manners.job;
        // The product of two draws: many short jobs, few long ones.
        let share = self.random(1001) * self.random(1001);
        self.after(shortest + (longest - shortest) * share / 1_000_000, Happening::Ended(key));
    }

    fn serve(&mut self, since: Millis) {
        self.tally.served += 1;
        self.tally.longest_wait = self.tally.longest_wait.max(self.now.since(since));
    }

    fn is(&self, key: u64, stage: Stage) -> bool {
        self.places.get(&key).is_some_and(|place| self.machines[*place].stage == stage)
    }

    /// Takes a machine into a stage from one of those before; its pool.
    fn enter(&mut self, key: u64, before: &[Stage], stage: Stage) -> usize {
        let machine = &mut self.machines[self.places[&key]];
        assert!(before.contains(&machine.stage), "{machine:?} can't become {stage:?}");
        (machine.stage, machine.since) = (stage, self.now);
        place(machine.pool)
    }

    fn after(&mut self, milliseconds: u64, happening: Happening) {
        let order = self.fresh();
        let at = self.now + Duration::from_millis(milliseconds);
        self.events.push(Reverse((at, order, happening)));
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl World {
    /// Queues a job where its pool gets them from.
    pub(crate) fn queue(&mut self, pool: usize) {
        match self.pools[pool].registers {
            Registers::Never => self.submit(pool),
            _ => self.queue_at_github(pool),
        }
    }

    /// Whether the two sets that name machines agree.
    pub(crate) fn is_consistent(&self) -> bool {
        let keys: HashSet<u64> = self.machines.iter().map(|machine| machine.key.0).collect();
        keys.len() == self.machines.len() && keys == self.places.keys().copied().collect()
    }
}
