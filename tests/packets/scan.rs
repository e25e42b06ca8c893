//! The record of denied connections while somebody scans: it stays bounded, and whom else something is denied to is told as ever.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use palisade::nft::{Denial, Mode, PRIORITY};
use palisade::sandbox::Place;
use policy_compiler::policy::Direction;

use crate::denials::{counted, palisade, record, send, share, until};
use crate::process::Process;
use crate::shop::{CLUSTER, DB_INGRESS, DENY_ALL, NONE};
use crate::world::{Family, Result, World, must, node, pod, udp};

/// What a set of the record holds.
const SIZE: usize = 4096;

/// A record of that size fills in 41 seconds at least, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// Datagrams from each of some sockets to every port of an address, again and again until it is dropped.
struct Scan {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Scan {
    /// Between two rounds of the sockets the sender pauses for so long.
    fn start(sockets: Vec<UdpSocket>, to: IpAddr, pause: Duration) -> Scan {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = std::thread::spawn(move || {
            for port in (1024..=65535).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // Each time another is the first: what is recorded of all in a second does not go to the same ones.
                let first = usize::from(port) * 11 % sockets.len();
                for socket in sockets.iter().cycle().skip(first).take(sockets.len()) {
                    // What a scanner fails to send is not denied either: the counters tell how much was.
                    let _ = socket.send_to(b"x", SocketAddr::new(to, port));
                }
                sleep(pause);
            }
        });
        Scan {
            stop,
            sender: Some(sender),
        }
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.sender.take().map(JoinHandle::join);
        debug_assert!(ended.is_none_or(|ended| ended.is_ok()), "the sender has panicked");
    }
}

fn socket(world: &World, from: &Place, source: SocketAddr) -> Result<UdpSocket> {
    Ok(world.netns(from)?.run(|| UdpSocket::bind(source))??)
}

/// Every port once, with nobody to look after the record: each counted, few recorded, and the record has an end.
pub(crate) fn a_scan_of_all_ports_stays_bounded() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    world.policies(DENY_ALL)?;
    let (web, db) = (pod("web"), pod("db"));
    let (from, to) = (world.address(&web, Family::V4)?, world.address(&db, Family::V4)?);
    let start = Instant::now();
    send(&world, &web, to, 1..=65535)?;
    // A busy machine takes its time with queues.
    until("each is counted", || {
        Ok(counted(&world, "a", Direction::Egress, from)? >= 65535)
    })?;
    let found = counted(&world, "a", Direction::Egress, from)?;
    must(found == 65535, format!("65535 datagrams were denied, {found} counted"))?;
    let entries = record(&world, "a")?.len() as u64;
    let took = start.elapsed();
    must(
        entries >= 50 && entries <= share(took),
        format!("{entries} entries after {took:?}"),
    )?;
    let listed = world.nft(&node("a"), &["list", "set", "inet", "palisade", "denied4"])?;
    must(listed.contains("size 4096"), "the record has no end")
}

/// In audit mode a scan by TCP is answered: to connection tracking the resets are of running connections, and recorded as such.
pub(crate) fn an_answered_scan_stays_bounded() -> Result {
    const SPAN: Duration = Duration::from_secs(5);
    const LEAST: usize = 1000;
    let mut world = World::of(CLUSTER, Mode::Audit)?;
    world.policies(DENY_ALL)?;
    let (web, db) = (pod("web"), pod("db"));
    for family in [Family::V4, Family::V6] {
        let to = world.address(&db, family)?;
        let start = Instant::now();
        let scan = || -> std::io::Result<usize> {
            let mut answers = 0;
            for port in 1024..=65535 {
                match TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => answers += 1,
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
                if start.elapsed() > SPAN && answers >= LEAST {
                    break;
                }
            }
            Ok(answers)
        };
        let answers = world.netns(&web)?.run(scan)??;
        must(answers >= LEAST, format!("{answers} ports have answered"))?;
        let entries = record(&world, "a")?;
        let of_family = entries.iter().filter(|d| d.to == to).count() as u64;
        let took = start.elapsed();
        // A share of what begins, and one of what runs.
        must(
            (50..=2 * share(took)).contains(&of_family),
            format!("{of_family} entries after {took:?} and {answers} answers"),
        )?;
    }
    Ok(())
}

/// While one pod scans as fast as it can, each of a few datagrams of another that are denied is recorded; told by the command, and logged.
pub(crate) fn a_scanner_hides_nobody() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let (web, api, db) = (pod("web"), pod("api"), pod("db"));
    world.policies(NONE)?;
    for from in [&web, &api] {
        world.passes(from, &db, udp(53), Family::V4)?;
    }
    let mut agent = Process::new(&world, "b", None)?;
    agent.policies(DB_INGRESS)?;
    agent.start_ready()?;
    let [from, to] = [world.address(&api, Family::V4)?, world.address(&db, Family::V4)?];
    let scanner = socket(&world, &web, world.socket(&web, Family::V4, 0)?)?;
    let scan = Scan::start(vec![scanner], to, Duration::ZERO);
    let denied = "palisade_denied_packets_total{namespace=\"shop\",pod=\"db\",direction=\"ingress\"}";
    agent.until("more is denied than there is room for", |agent| {
        // There is no such metric before the first look.
        Ok(agent.metric(denied).unwrap_or_default() > 2 * SIZE as u64)
    })?;
    // What the scan leaves no room for on the way is no denial: what comes is seen just before the rules judge it.
    let seen = format!(
        "add table inet seen; add set inet seen ports {{ type inet_service; size 64; flags dynamic; }};
         add chain inet seen c {{ type filter hook forward priority {}; }};
         add rule inet seen c ip saddr {from} add @ports {{ udp dport }}",
        PRIORITY - 1
    );
    world.nft(&node("b"), &[&seen])?;
    // One may be lucky while the scanner is not running; not all of them, and what has come is not sent again.
    let ports = 9000..9010;
    for port in ports.clone() {
        until("it arrives", || {
            send(&world, &api, to, [port].into_iter())?;
            sleep(Duration::from_millis(20));
            let listed = world.nft(&node("b"), &["list", "set", "inet", "seen", "ports"])?;
            Ok(listed.contains(&port.to_string()))
        })?;
    }
    agent.until("each is recorded", |_| {
        let record = record(&world, "b")?;
        let is_there = |port| record.iter().any(|d| d.from == from && d.port == Some(port));
        Ok(ports.clone().all(is_there))
    })?;
    let path = agent.manifests().display().to_string();
    let output = palisade(&world, &node("b"), &["denied", "--manifests", &path])?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find(|line| line.contains("9000/UDP") && line.contains("shop/api"));
    must(
        line.is_some_and(|line| line.contains("ingress isolated by shop/db")),
        &text,
    )?;
    agent.until("it is logged", |agent| {
        let log = agent.log();
        let mut lines = log.lines().filter(|line| line.contains("\"message\":\"denied\""));
        Ok(lines.any(|line| line.contains("shop/api (") && line.contains("9000/UDP")))
    })?;
    drop(scan);
    let scanned = record(&world, "b")?.iter().filter(|d| d.from != from).count();
    must(scanned >= 50, format!("the scanner itself: {scanned} entries"))
}

/// Scanners enough to take all that is recorded in a second. The agent makes room at their expense, and takes its own doing for
/// nobody else's.
pub(crate) fn scanners_make_room_for_others() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let (web, api, db) = (pod("web"), pod("api"), pod("db"));
    world.policies(NONE)?;
    let to = world.address(&db, Family::V6)?;
    let from = world.address(&api, Family::V6)?;
    let sources = (1..=60).map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0x5ca, 0, 0, 0, 0, n));
    let batch: String = sources.clone().map(|s| format!("addr add {s}/128 dev lo\n")).collect();
    world.netns(&web)?.ip(&batch)?;
    world.passes(&api, &db, udp(53), Family::V6)?;
    let mut agent = Process::new(&world, "b", None)?;
    agent.policies(DB_INGRESS)?;
    agent.start_ready()?;
    let checks = "palisade_drift_check_duration_seconds_count";
    agent.until("the table was looked at", |agent| Ok(agent.metric(checks)? > 0))?;
    let looks = agent.metric(checks)?;

    let is_it = |port: u16| move |denial: &Denial| denial.from == from && denial.port == Some(port);
    send(&world, &api, to, [9000].into_iter())?;
    agent.until("it is recorded", |_| Ok(record(&world, "b")?.iter().any(is_it(9000))))?;
    let sockets = sources.map(|source| socket(&world, &web, SocketAddr::new(source.into(), 0)));
    let scan = Scan::start(sockets.collect::<Result<_>>()?, to, Duration::from_millis(100));
    let start = Instant::now();
    let mut most = 0;
    loop {
        let entries = record(&world, "b")?.len();
        if entries + 256 < most {
            break;
        }
        most = most.max(entries);
        // When that is depends on the machine: a record that is full stays so.
        must(
            start.elapsed() < PATIENCE,
            format!("{most} entries after {:?}, and no room was made", start.elapsed()),
        )?;
        sleep(Duration::from_millis(200));
    }
    must(most > 1024, format!("room was made with {most} entries"))?;
    drop(scan);
    let entries = record(&world, "b")?;
    must(
        entries.iter().any(is_it(9000)),
        "the longest ago went, and not what the scanners have most of",
    )?;
    // Every one of them has about as much as any other.
    let scanned = |n: u16| {
        let source = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x5ca, 0, 0, 0, 0, n));
        entries.iter().filter(|d| d.from == source).count()
    };
    let counts: Vec<usize> = (1..=60).map(scanned).collect();
    must(counts.iter().all(|n| (1..100).contains(n)), format!("{counts:?}"))?;

    send(&world, &api, to, [9001].into_iter())?;
    agent.until("the next is recorded", |_| {
        Ok(record(&world, "b")?.iter().any(is_it(9001)))
    })?;
    let repairs = agent.metric("palisade_drift_repairs_total")?;
    let found = agent.metric(checks)?;
    must(
        (repairs, found) == (0, looks),
        format!("{repairs} repairs and {} looks at the whole table", found - looks),
    )
}
