//! A flood of datagrams on many lanes at once, and what arrived of each: what an update does to packets shows in the counts.
//!
//! Arrivals are counted, and ended, by a rule in the receiver's namespace: no listener's buffer can overflow, and no answer
//! turns a lane's packets into replies.

use std::fmt::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use palisade::sandbox::{Place, program};

use crate::world::{Family, Result, World, must};

/// The source port of the first lane; it tells the lanes apart where they arrive.
const FIRST: u16 = 31_000;

/// What is still in a queue when the sender stops arrives within far less.
const SETTLED: Duration = Duration::from_millis(200);

/// But for a machine that is too busy to look into its queues: what should arrive is waited for as long as more of it comes.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the sender may take for a round: plenty on a busy machine.
const ROUND: Duration = Duration::from_secs(60);

/// Who sends to whom, and whether policy lets it pass.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) port: u16,
    pub(crate) passes: bool,
}

/// A lane's datagrams of one family.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    lane: Lane,
    family: Family,
    source_port: u16,
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
}

impl Count {
    /// Who sends to whom.
    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// How many datagrams did not fare as policy says.
    pub(crate) fn wrong(&self) -> u64 {
        match self.lane.passes {
            true => self.sent.abs_diff(self.arrived),
            false => self.arrived,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count {
            lane,
            family,
            sent,
            arrived,
            ..
        } = self;
        let Lane { from, to, port, passes } = lane;
        let word = if *passes { "allowed" } else { "denied" };
        write!(
            f,
            "{from} to {to} on {port} ({family:?}, {word}): {sent} sent, {arrived} arrived"
        )
    }
}

/// Datagrams on their way.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    sender: JoinHandle<Vec<u64>>,
    counts: Vec<Count>,
}

/// What came of a flood.
pub(crate) struct Tally {
    pub(crate) counts: Vec<Count>,
}

impl Flood {
    /// Starts sending on all lanes, in both families, in turn; between two rounds the sender pauses for so long. Each lane has
    /// sent something when this returns.
    pub(crate) fn start(world: &World, lanes: &[Lane], pause: Duration) -> Result<Flood> {
        let mut counts = Vec::new();
        let mut sockets = Vec::new();
        let mut number = FIRST;
        for lane in lanes {
            for family in Family::BOTH {
                let bind = SocketAddr::new(world.address(&lane.from, family)?, number);
                let socket = world.netns(&lane.from)?.run(|| UdpSocket::bind(bind))??;
                sockets.push((socket, world.socket(&lane.to, family, lane.port)?));
                counts.push(Count {
                    lane: lane.clone(),
                    family,
                    source_port: number,
                    sent: 0,
                    arrived: 0,
                });
                number += 1;
            }
        }
        for place in receivers(&counts) {
            let mut rules = String::from(
                "table inet arrivals\ndelete table inet arrivals\ntable inet arrivals {\nchain arrivals {\n\
                 type filter hook prerouting priority raw;\n",
            );
            for count in counts.iter().filter(|c| c.lane.to == place) {
                let protocol = if count.family == Family::V4 { "ipv4" } else { "ipv6" };
                let _ = writeln!(
                    rules,
                    "meta nfproto {protocol} udp sport {} counter drop",
                    count.source_port
                );
            }
            rules.push_str("}\n}\n");
            world.netns(&place)?.nft(&rules)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let sender = std::thread::spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || {
                let mut sent = vec![0; sockets.len()];
                while !stop.load(Ordering::Relaxed) {
                    for ((socket, to), sent) in sockets.iter().zip(&mut sent) {
                        *sent += u64::from(socket.send_to(b"flood", to).is_ok());
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    sleep(pause);
                }
                sent
            }
        });
        let flood = Flood {
            stop,
            rounds,
            sender,
            counts,
        };
        flood.round()?;
        Ok(flood)
    }

    /// Waits until something has been sent on each lane after what the caller did before.
    pub(crate) fn round(&self) -> Result {
        let (start, begun) = (Instant::now(), self.rounds.load(Ordering::Relaxed));
        // The round that is under way has perhaps begun before it.
        while self.rounds.load(Ordering::Relaxed) < begun + 2 {
            must(start.elapsed() < ROUND, format!("no round within {ROUND:?}"))?;
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Stops sending, and says what has arrived.
    pub(crate) fn stop(self, world: &World) -> Result<Tally> {
        let Flood {
            stop,
            sender,
            mut counts,
            ..
        } = self;
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| "the sender panicked")?;
        for (count, sent) in counts.iter_mut().zip(sent) {
            count.sent = sent;
        }
        let mut tally = Tally { counts };
        let (mut lost, mut since) = (u64::MAX, Instant::now());
        loop {
            sleep(SETTLED);
            tally.look(world)?;
            if tally.lost() < lost {
                (lost, since) = (tally.lost(), Instant::now());
            }
            if lost == 0 || since.elapsed() > PATIENCE {
                return Ok(tally);
            }
        }
    }
}

fn receivers(counts: &[Count]) -> std::collections::BTreeSet<Place> {
    counts.iter().map(|c| c.lane.to.clone()).collect()
}

impl Tally {
    /// Reads what has arrived by now.
    fn look(&mut self, world: &World) -> Result {
        for place in receivers(&self.counts) {
            let nft = program("nft")?;
            let list = || Command::new(nft).args(["list", "table", "inet", "arrivals"]).output();
            let output = world.netns(&place)?.run(list)??;
            let text = String::from_utf8_lossy(&output.stdout);
            for count in self.counts.iter_mut().filter(|c| c.lane.to == place) {
                let rule = format!("udp sport {} counter packets ", count.source_port);
                let packets = text
                    .split_once(&rule)
                    .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
                count.arrived = packets.ok_or_else(|| format!("no counter for {count}: {text}"))?;
            }
        }
        Ok(())
    }

    /// How many datagrams passed that should not have.
    pub(crate) fn leaked(&self) -> u64 {
        self.counts.iter().filter(|c| !c.lane.passes).map(Count::wrong).sum()
    }

    /// How many datagrams did not arrive that should have.
    pub(crate) fn lost(&self) -> u64 {
        self.counts.iter().filter(|c| c.lane.passes).map(Count::wrong).sum()
    }

    /// How many datagrams there were.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.iter().map(|c| c.sent).sum()
    }

    /// Fails unless every lane sent something, and every datagram fared as policy says.
    #[track_caller]
    pub(crate) fn flawless(&self) -> Result {
        let wrong: Vec<String> = (self.counts.iter())
            .filter(|c| c.wrong() > 0 || c.sent == 0)
            .map(Count::to_string)
            .collect();
        must(wrong.is_empty(), wrong.join("\n"))
    }
}
