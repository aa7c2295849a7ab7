//! A simulation of the rest of the world on a virtual clock: microVMs that boot, fail, register and
//! end, and a forge that gives jobs to runners. It carries out every decision and checks it.
//!
//! Tests and the benchmark share this file, so everything it needs comes from the module around it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::{
    Action, ActiveBlocker, Backoff, Blocker, Decision, DecisionInput, JobKey, MicrovmKey,
    MicrovmState, Millis, Pool, PoolId, RegistrationPolicy, Resources, Stage, WaitingJobs, decide,
};

/// The behavior of the world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behavior {
    /// The shortest and the longest boot, in milliseconds.
    pub(crate) boot: (u64, u64),
    /// The shortest and the longest job, in milliseconds. Most are closer to the shortest.
    pub(crate) job: (u64, u64),
    /// The number of failed boots per thousand.
    pub(crate) boot_failures: u64,
    /// The number of failed registrations per thousand.
    pub(crate) registration_failures: u64,
}

/// Statistics of a simulation.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorldStatistics {
    pub(crate) decisions: u64,
    pub(crate) boots: u64,
    pub(crate) retired: u64,
    pub(crate) served: u64,
    pub(crate) longest_wait: Duration,
    pub(crate) most_microvms: usize,
    pub(crate) most_waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WorldEvent {
    Booted(u64),
    BootFailed(u64),
    Listening(u64),
    RegistrationFailed(u64),
    Started(u64),
    Ended(u64),
    Gone(u64),
    Matched(usize),
    Wake,
}

pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) pools: Vec<Pool>,
    pub(crate) microvms: Vec<MicrovmState>,
    pub(crate) budget: Resources,
    pub(crate) draining: bool,
    pub(crate) statistics: WorldStatistics,
    /// The number of jobs per pool that the forge is wrongly believed to have.
    pub(crate) phantoms: Vec<u32>,
    behavior: Behavior,
    local: BTreeMap<(Millis, u64), usize>,
    github: Vec<VecDeque<Millis>>,
    backoffs: Vec<Backoff>,
    places: HashMap<u64, usize>,
    events: BinaryHeap<Reverse<(Millis, u64, WorldEvent)>>,
    next: u64,
    random: u64,
}

/// Returns the id of the pool at that position.
pub(crate) fn id(place: usize) -> PoolId {
    PoolId(u32::try_from(place).expect("few pools"))
}

/// Returns the position of the pool with that id.
fn place(pool: PoolId) -> usize {
    pool.0 as usize
}

impl World {
    pub(crate) fn new(
        mut pools: Vec<Pool>,
        budget: Resources,
        behavior: Behavior,
        seed: u64,
    ) -> Self {
        for (place, pool) in pools.iter_mut().enumerate() {
            pool.id = id(place);
        }
        Self {
            now: Millis(0),
            microvms: Vec::new(),
            budget,
            draining: false,
            statistics: WorldStatistics::default(),
            phantoms: vec![0; pools.len()],
            behavior,
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

    /// Returns a pseudo-random number below `end` (xorshift64*).
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
        self.after(1000, WorldEvent::Matched(pool));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.local.len() + self.github.iter().map(VecDeque::len).sum::<usize>()
    }

    /// Returns the time of the next event, if any.
    pub(crate) fn next_event(&self) -> Option<Millis> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Simulates up to a time, with a decision after each event, or after all events of a `tick`.
    pub(crate) fn run_until(&mut self, end: Millis, tick: Duration) {
        self.decide();
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let together = (self.now + tick).min(end);
            while self.next_event().is_some_and(|at| at <= together) {
                if let Some(Reverse((at, _, event))) = self.events.pop() {
                    self.now = self.now.max(at);
                    self.apply(event);
                }
            }
            self.decide();
        }
        self.now = self.now.max(end);
    }

    /// Returns the waiting jobs as the daemon sees them.
    pub(crate) fn demand(&self) -> Vec<WaitingJobs> {
        let local = self.local.iter().map(|((since, job), pool)| WaitingJobs::Local {
            job: JobKey(*job),
            pool: id(*pool),
            since: *since,
        });
        let github = self.github.iter().zip(&self.phantoms).enumerate();
        let runners = github.filter_map(|(pool, (queue, phantoms))| {
            let count = u32::try_from(queue.len()).expect("few jobs") + phantoms;
            let since = queue.front().copied().unwrap_or_default();
            (count > 0).then_some(WaitingJobs::Runners { pool: id(pool), count, since })
        });
        local.chain(runners).collect()
    }

    /// Makes a decision, checks it and carries it out.
    pub(crate) fn decide(&mut self) -> Decision {
        let demand = self.demand();
        let input = DecisionInput {
            now: self.now,
            pools: &self.pools,
            microvms: &self.microvms,
            demand: &demand,
            budget: self.budget,
            draining: self.draining,
        };
        let decision = decide(&input);
        self.check_blockers(&demand, &decision);
        for action in &decision.actions {
            self.carry_out(*action);
        }
        self.check_limits();
        if let Some(wake) = decision.wake {
            assert!(wake > self.now, "to wake at {wake:?}, which is past at {:?}", self.now);
            self.events.push(Reverse((wake, 0, WorldEvent::Wake)));
        }
        self.statistics.decisions += 1;
        self.statistics.most_microvms = self.statistics.most_microvms.max(self.microvms.len());
        self.statistics.most_waiting = self.statistics.most_waiting.max(self.waiting());
        decision
    }

    /// Checks that each waiting job has an action, or its pool a reason.
    fn check_blockers(&self, demand: &[WaitingJobs], decision: &Decision) {
        let mut unserved = vec![0; self.pools.len()];
        for waiting in demand {
            unserved[place(waiting.pool())] += i64::from(waiting.count());
        }
        for action in &decision.actions {
            if let Action::Assign { microvm, .. } | Action::Register { microvm } = action {
                let microvm = &self.microvms[self.places[&microvm.0]];
                unserved[place(microvm.pool)] -= 1;
            }
        }
        for (pool, unserved) in unserved.into_iter().enumerate() {
            let named = decision.blockers.contains_key(&id(pool));
            assert!(named || unserved <= 0, "{unserved} jobs of pool {pool} wait without a reason");
        }
    }

    fn check_limits(&self) {
        let mut counts = vec![0; self.pools.len()];
        let mut used = Resources::default();
        for microvm in &self.microvms {
            used = used.plus(microvm.resources);
            counts[place(microvm.pool)] += 1;
        }
        assert!(used.processors <= self.budget.processors && used.memory <= self.budget.memory);
        for (pool, count) in self.pools.iter().zip(counts) {
            assert!(count <= pool.max, "{count} microVMs in a pool of {}", pool.max);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Boot { pool } => {
                let (key, resources) = (self.fresh(), self.pools[place(pool)].resources);
                let microvm = MicrovmState {
                    key: MicrovmKey(key),
                    pool,
                    resources,
                    stage: Stage::Booting,
                    since: self.now,
                };
                self.places.insert(key, self.microvms.len());
                self.microvms.push(microvm);
                let (shortest, longest) = self.behavior.boot;
                let time = shortest + self.random(longest - shortest + 1);
                let fails = self.random(1000) < self.behavior.boot_failures;
                let next = if fails { WorldEvent::BootFailed } else { WorldEvent::Booted };
                self.after(time, next(key));
                self.statistics.boots += 1;
            }
            Action::Assign { microvm, job } => {
                self.enter(microvm.0, &[Stage::Warm], Stage::Assigned);
                let waiting = self.local.keys().find(|(_, key)| *key == job.0).copied();
                let (since, key) = waiting.expect("a job that waits");
                self.local.remove(&(since, key));
                self.serve(since);
                self.after(100, WorldEvent::Started(microvm.0));
            }
            Action::Register { microvm } => {
                self.enter(microvm.0, &[Stage::Warm], Stage::Registering);
                let fails = self.random(1000) < self.behavior.registration_failures;
                let next =
                    if fails { WorldEvent::RegistrationFailed } else { WorldEvent::Listening };
                self.after(500, next(microvm.0));
            }
            Action::Retire { microvm, .. } => {
                let without_job = [Stage::Booting, Stage::Warm, Stage::Registered];
                self.enter(microvm.0, &without_job, Stage::Ending);
                self.after(300, WorldEvent::Gone(microvm.0));
                self.statistics.retired += 1;
            }
        }
    }

    fn apply(&mut self, event: WorldEvent) {
        match event {
            WorldEvent::Booted(key) if self.is(key, Stage::Booting) => {
                let pool = self.enter(key, &[Stage::Booting], Stage::Warm);
                self.backoffs[pool].reset();
                self.pools[pool].boot_blocker = None;
            }
            WorldEvent::BootFailed(key) if self.is(key, Stage::Booting) => {
                let pool = self.enter(key, &[Stage::Booting], Stage::Ending);
                self.backoffs[pool].record_failure(self.now);
                let until = self.backoffs[pool].until();
                let reason = Blocker::BootsFail("boot_deadline".to_owned());
                self.pools[pool].boot_blocker = Some(ActiveBlocker { until, reason });
                self.after(300, WorldEvent::Gone(key));
            }
            WorldEvent::Listening(key) => {
                let pool = self.enter(key, &[Stage::Registering], Stage::Registered);
                self.after(1000, WorldEvent::Matched(pool));
            }
            WorldEvent::RegistrationFailed(key) => {
                self.enter(key, &[Stage::Registering], Stage::Ending);
                self.after(300, WorldEvent::Gone(key));
            }
            WorldEvent::Started(key) => {
                self.enter(key, &[Stage::Assigned], Stage::Busy);
                self.run(key);
            }
            WorldEvent::Ended(key) => {
                self.enter(key, &[Stage::Busy], Stage::Ending);
                self.after(300, WorldEvent::Gone(key));
            }
            WorldEvent::Gone(key) => {
                let place = self.places.remove(&key).expect("a microVM");
                self.microvms.swap_remove(place);
                if let Some(moved) = self.microvms.get(place) {
                    self.places.insert(moved.key.0, place);
                }
            }
            WorldEvent::Matched(pool) => self.give_jobs(pool),
            WorldEvent::Booted(_) | WorldEvent::BootFailed(_) | WorldEvent::Wake => {}
        }
    }

    /// Gives the jobs of a pool to its runners.
    fn give_jobs(&mut self, pool: usize) {
        let idle = |microvm: &&MicrovmState| {
            microvm.pool == id(pool) && microvm.stage == Stage::Registered
        };
        let waiting = self.github[pool].len();
        let runners: Vec<u64> =
            self.microvms.iter().filter(idle).take(waiting).map(|one| one.key.0).collect();
        for key in runners {
            if let Some(since) = self.github[pool].pop_front() {
                self.enter(key, &[Stage::Registered], Stage::Busy);
                self.serve(since);
                self.run(key);
            }
        }
    }

    fn run(&mut self, key: u64) {
        let (shortest, longest) = self.behavior.job;
        // The product of two draws: many short jobs, few long ones.
        let share = self.random(1001) * self.random(1001);
        self.after(shortest + (longest - shortest) * share / 1_000_000, WorldEvent::Ended(key));
    }

    fn serve(&mut self, since: Millis) {
        self.statistics.served += 1;
        self.statistics.longest_wait = self.statistics.longest_wait.max(self.now.since(since));
    }

    fn is(&self, key: u64, stage: Stage) -> bool {
        self.places.get(&key).is_some_and(|place| self.microvms[*place].stage == stage)
    }

    /// Moves a microVM to a stage. Checks its stage before, and returns its pool's position.
    fn enter(&mut self, key: u64, before: &[Stage], stage: Stage) -> usize {
        let microvm = &mut self.microvms[self.places[&key]];
        assert!(before.contains(&microvm.stage), "{microvm:?} can't become {stage:?}");
        (microvm.stage, microvm.since) = (stage, self.now);
        place(microvm.pool)
    }

    fn after(&mut self, milliseconds: u64, event: WorldEvent) {
        let order = self.fresh();
        let at = self.now + Duration::from_millis(milliseconds);
        self.events.push(Reverse((at, order, event)));
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl World {
    /// Queues a job at the source of its pool.
    pub(crate) fn queue(&mut self, pool: usize) {
        match self.pools[pool].registration {
            RegistrationPolicy::Never => self.submit(pool),
            _ => self.queue_at_github(pool),
        }
    }

    /// Returns whether the index of the microVMs is consistent.
    pub(crate) fn is_consistent(&self) -> bool {
        let keys: HashSet<u64> = self.microvms.iter().map(|microvm| microvm.key.0).collect();
        keys.len() == self.microvms.len() && keys == self.places.keys().copied().collect()
    }
}
