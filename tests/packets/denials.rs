//! What becomes of denied packets: counted for each pod, remembered for a while, answered when that is wanted, and told by the
//! command and the agent.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::nft::names::{Family as NftFamily, Side};
use palisade::nft::{Denial, DenyAction, Kernel, Mode, Settings};
use palisade::sandbox::{Expect, Outcome, Place, Probe, Sctp};
use policy_compiler::policy::Direction;
use policy_compiler::ports::{Protocol, Traffic};

use crate::environment::without_settings;
use crate::packets::{Datagrams, waited};
use crate::shop::{CLUSTER, DB_INGRESS, DENY_ALL, ONLY_DB};
use crate::world::{Family, Result, World, must, node, pod, tcp, udp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade");

const NONE: &str = "kind: NetworkPolicyList\napiVersion: networking.k8s.io/v1\nitems: []\n";

/// Long for a machine under load.
const PATIENCE: Duration = Duration::from_secs(30);

/// The packets that a node has counted for one address in a direction; 0 when it counts none for it.
pub(crate) fn counted(world: &World, name: &str, direction: Direction, address: IpAddr) -> Result<u64> {
    let family = NftFamily::of(address);
    let counts = world.kernel(name, |kernel| kernel.counts(Side { direction, family }))?;
    let counts = counts.ok_or("there is no table")?;
    Ok(counts.iter().find(|c| c.address == address).map_or(0, |c| c.packets))
}

/// The same once there are so many, or as many as there are when nobody waits any longer: a busy machine takes its time with queues.
fn settled(world: &World, name: &str, direction: Direction, address: IpAddr, many: u64) -> Result<u64> {
    let start = Instant::now();
    loop {
        let found = counted(world, name, direction, address)?;
        if found >= many || start.elapsed() > PATIENCE {
            return Ok(found);
        }
        sleep(Duration::from_millis(50));
    }
}

pub(crate) fn record(world: &World, name: &str) -> Result<Vec<Denial>> {
    Ok(world
        .kernel(name, |kernel| kernel.denials())?
        .ok_or("there is no table")?)
}

/// Sends datagrams to ports of an address, so slowly that no queue on the way overflows.
pub(crate) fn send(world: &World, from: &Place, to: IpAddr, ports: impl Iterator<Item = u16>) -> Result {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let source = world.socket(from, family, 0)?;
    let socket = world.netns(from)?.run(|| UdpSocket::bind(source))??;
    for (at, port) in ports.enumerate() {
        match socket.send_to(b"x", (to, port)) {
            // The answer to an earlier one.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) => {}
            sent => drop(sent?),
        }
        if at % 100 == 99 {
            sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result {
    let start = Instant::now();
    while !done()? {
        must(start.elapsed() < PATIENCE, format!("not within {PATIENCE:?}: {what}"))?;
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// So many packets that begin connections of one source are recorded in some time, at most.
pub(crate) fn share(time: Duration) -> u64 {
    50 + 10 * (time.as_secs() + 1)
}

pub(crate) fn counters_are_exact_and_the_record_is_a_sample() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let (web, api, db) = (pod("web"), pod("api"), pod("db"));
    for family in Family::BOTH {
        // What will be denied works without policy. Each is one datagram and one answer, of which nothing is on its way any more: a probe
        // asks again when an answer is late, and what came after the policy would be counted.
        world.policies(NONE)?;
        for from in [&web, &api] {
            let works = Datagrams::new(&world, from, &db, family)?.arrives(4, 4, Expect::Answer)?;
            must(works, format!("{family:?}: {from} does not reach db without policy"))?;
        }
        let [web_address, api_address, db_address] = [
            world.address(&web, family)?,
            world.address(&api, family)?,
            world.address(&db, family)?,
        ];

        // Ingress of db: its own node counts, and the client's does not.
        world.policies(DB_INGRESS)?;
        let start = Instant::now();
        send(&world, &api, db_address, std::iter::repeat_n(5300, 50))?;
        let found = settled(&world, "b", Direction::Ingress, db_address, 50)?;
        must(
            found == 50,
            format!("{family:?}: 50 datagrams were denied to db, {found} counted"),
        )?;
        must(
            counted(&world, "b", Direction::Egress, db_address)? == 0,
            "counted in both directions",
        )?;
        must(
            counted(&world, "a", Direction::Egress, api_address)? == 0,
            "counted for a pod that nothing judges",
        )?;
        let entries: Vec<Denial> = (record(&world, "b")?.into_iter())
            .filter(|d| d.from == api_address)
            .collect();
        let [entry] = entries.as_slice() else {
            return Err(format!("{family:?}: not one entry: {entries:?}").into());
        };
        must(
            (entry.to, entry.words().as_str(), entry.packets) == (db_address, "5300/UDP", 50),
            format!("{family:?}: 50 datagrams became {entry:?}"),
        )?;
        let per_packet = if family == Family::V4 { 29 } else { 49 };
        // To the second, which has begun.
        let most = start.elapsed() + Duration::from_secs(1);
        must(
            entry.bytes == 50 * per_packet && entry.ago <= most,
            format!("after {most:?}: {entry:?}"),
        )?;

        // Egress of web: many at once are all counted, and few of them recorded. An update of something else loses nothing.
        world.policies(DENY_ALL)?;
        let start = Instant::now();
        send(&world, &web, db_address, std::iter::repeat_n(5300, 3000))?;
        world.policies(&format!("{DENY_ALL}---{DB_INGRESS}"))?;
        send(&world, &web, db_address, std::iter::repeat_n(5300, 1000))?;
        let found = settled(&world, "a", Direction::Egress, web_address, 4000)?;
        must(
            found == 4000,
            format!("{family:?}: 4000 datagrams of web were denied, {found} counted"),
        )?;
        let found = counted(&world, "b", Direction::Ingress, db_address)?;
        must(
            found == 50,
            format!("{family:?}: what web's node stopped came to db's: {found}"),
        )?;
        let entries = record(&world, "a")?;
        let entry = entries
            .iter()
            .find(|d| d.from == web_address)
            .ok_or("nothing was recorded")?;
        must(
            entry.packets >= 50 && entry.packets <= share(start.elapsed()),
            format!("{family:?}: {} of 4000 packets were recorded", entry.packets),
        )?;
        // Counters and records are no change of the table.
        let drift = world.drift()?;
        must(drift.is_none(), format!("{family:?}: {drift:?}"))?;
    }
    Ok(())
}

pub(crate) fn entries_age() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    world.policies(DENY_ALL)?;
    let to = world.address(&pod("db"), Family::V4)?;
    let is_there = |port, packets| -> Result<bool> {
        let mut entries = record(&world, "a")?.into_iter();
        Ok(entries.any(|d| (d.port, d.packets) == (Some(port), packets)))
    };
    send(&world, &pod("web"), to, [1000, 1001].into_iter())?;
    until("both are recorded", || Ok(is_there(1000, 1)? && is_there(1001, 1)?))?;
    sleep(Duration::from_millis(2200));
    send(&world, &pod("web"), to, [1001].into_iter())?;
    until("one is renewed", || is_there(1001, 2))?;
    // By one look at the record: two are some time apart.
    let entries = record(&world, "a")?;
    let ago = |port| {
        let found = entries.iter().find(|d| d.port == Some(port));
        found.map(|d| d.ago).ok_or(format!("no entry of {port}"))
    };
    let (old, renewed) = (ago(1000)?, ago(1001)?);
    must(
        old >= Duration::from_secs(2) && renewed < old,
        format!("{old:?} and {renewed:?} ago"),
    )?;
    // An hour is long; one that has a few seconds left is gone after them.
    nft(
        &world,
        "a",
        "add element inet palisade denied4 { 192.0.2.1 . 192.0.2.2 . tcp . 80 timeout 10s }",
    )?;
    must(record(&world, "a")?.len() == 3, "the entry is not there")?;
    until("the entry is gone", || Ok(record(&world, "a")?.len() == 2))
}

/// Who tried to reach whom on which port, on any node.
fn tried(world: &World) -> Result<BTreeSet<(IpAddr, IpAddr, String)>> {
    let mut all = BTreeSet::new();
    for name in ["a", "b"] {
        all.extend(record(world, name)?.into_iter().map(|d| (d.from, d.to, d.words())));
    }
    Ok(all)
}

pub(crate) fn audit_records_what_enforcing_does() -> Result {
    let mut worlds = [World::of(CLUSTER, Mode::Enforce)?, World::of(CLUSTER, Mode::Audit)?];
    let mut records = Vec::new();
    for (world, audit) in worlds.iter_mut().zip([false, true]) {
        world.policies(ONLY_DB)?;
        for family in Family::BOTH {
            for traffic in [tcp(80), udp(53), Traffic::Other] {
                for (from, to) in [("web", "api"), ("db", "web"), ("api", "web"), ("web", "db")] {
                    let allowed = (from, to) == ("web", "db") && traffic != Traffic::Other;
                    match audit || allowed {
                        true => world.passes(&pod(from), &pod(to), traffic, family)?,
                        false => world.dropped(&pod(from), &pod(to), traffic, family)?,
                    }
                }
            }
        }
        records.push(tried(world)?);
        // By the same pods.
        for (name, from) in [("a", "web"), ("a", "api"), ("b", "db")] {
            let address = world.address(&pod(from), Family::V6)?;
            must(
                counted(world, name, Direction::Egress, address)? > 0,
                format!("nothing was counted for {from}"),
            )?;
        }
    }
    // web and api are denied to each other and db to web, on two ports and by ping; web's ping to db as well.
    must(records[0].len() == 2 * 10, format!("{:#?}", records[0]))?;
    must(
        records[0] == records[1],
        format!("{:#?}\nin audit mode\n{:#?}", records[0], records[1]),
    )
}

fn rejecting() -> Settings {
    Settings {
        deny_action: DenyAction::Reject,
        ..Settings::default()
    }
}

pub(crate) fn a_rejected_sender_hears_of_it() -> Result {
    let mut world = World::of(CLUSTER, rejecting())?;
    let sctp = Traffic::Port(Protocol::Sctp, 90);
    for family in Family::BOTH {
        world.policies(NONE)?;
        for traffic in [tcp(80), udp(53), sctp, Traffic::Other] {
            world.passes(&pod("web"), &pod("db"), traffic, family)?;
        }
        // By web's own node and by db's.
        for policies in [DENY_ALL, &DB_INGRESS.replace("app: web", "app: nobody")] {
            world.policies(policies)?;
            // Linux's word for "administratively prohibited": in IPv4 that of an unreachable host, of which there is none here.
            let prohibited = match family {
                Family::V4 => "no route to host",
                Family::V6 => "permission denied",
            };
            for traffic in [tcp(80), udp(53), sctp, Traffic::Other] {
                // A raw socket is not told of ICMP errors.
                let is_told = traffic != sctp || world.sandbox.sctp() == Sctp::Kernel;
                let outcome = world.sandbox.probe(&Probe {
                    from: pod("web"),
                    source: None,
                    to: world.address(&pod("db"), family)?,
                    traffic,
                    expect: if is_told { Expect::Answer } else { Expect::Silence },
                })?;
                let expected = match traffic {
                    Traffic::Port(Protocol::Tcp, _) => vec![Outcome::Refused],
                    Traffic::Port(Protocol::Sctp, _) => {
                        vec![Outcome::Unreachable(prohibited.to_owned()), Outcome::Silent]
                    }
                    _ => vec![Outcome::Unreachable(prohibited.to_owned())],
                };
                must(
                    expected.contains(&outcome),
                    format!("{family:?} on {traffic}: {outcome}"),
                )?;
            }
        }
        // What is allowed is answered by its listener.
        world.policies(ONLY_DB)?;
        world.passes(&pod("web"), &pod("db"), tcp(80), family)?;
    }
    Ok(())
}

/// A connection that runs is reset with the first packet after the change, at the end that sends it.
pub(crate) fn a_revoked_connection_is_reset() -> Result {
    let mut world = World::of(CLUSTER, rejecting())?;
    for family in Family::BOTH {
        world.policies(&ONLY_DB.replace("port: 80}", "port: 8080}"))?;
        let to = world.socket(&pod("db"), family, 8080)?;
        let listener = world.netns(&pod("db"))?.run(|| TcpListener::bind(to))??;
        let mut client = world
            .netns(&pod("web"))?
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))??;
        let (mut server, _) = listener.accept()?;
        let mut byte = [0];
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        client.write_all(b"x")?;
        server.read_exact(&mut byte)?;
        world.policies(DENY_ALL)?;
        for (who, stream) in [("client", &mut client), ("server", &mut server)] {
            stream.write_all(b"x")?;
            match waited(|| stream.read(&mut byte)) {
                Err(error) if error.to_string().contains("reset by peer") => {}
                other => return Err(format!("{family:?}: the {who} heard {other:?}").into()),
            }
        }
    }
    Ok(())
}

fn nft(world: &World, name: &str, command: &str) -> Result<String> {
    let program = palisade::sandbox::program("nft")?;
    let output = world
        .netns(&node(name))?
        .run(|| Command::new(program).arg(command).output())??;
    must(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs this program on a node.
pub(crate) fn palisade(world: &World, place: &Place, arguments: &[&str]) -> Result<Output> {
    let run = || {
        without_settings(&mut Command::new(PROGRAM))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
    };
    Ok(world.netns(place)?.run(run)??)
}

/// The cluster as the API server would tell it, addresses and nodes included.
fn manifests(world: &World, policies: &str) -> Result<String> {
    let mut text = String::new();
    for document in CLUSTER.split("---") {
        text.push_str(document.trim_end());
        if let Some(name) = ["web", "api", "db"]
            .iter()
            .find(|n| document.contains(&format!("name: {n},")))
        {
            let [v4, v6] = [Family::V4, Family::V6].map(|family| world.address(&pod(name), family));
            let (v4, v6) = (v4?, v6?);
            text.push_str(&format!(
                "\nstatus: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}"
            ));
        }
        text.push_str("\n---\n");
    }
    for name in ["a", "b"] {
        let address = world.address(&node(name), Family::V4)?;
        text.push_str(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
        ));
    }
    text.push_str(policies);
    Ok(text)
}

/// A child that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn the_command_tells_who_and_why() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cluster.yaml");
    std::fs::write(&file, manifests(&world, ONLY_DB)?)?;
    let path = file.display().to_string();
    let on_b = node("b");

    // Where no agent was.
    let output = palisade(&world, &on_b, &["denied"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    must(
        output.status.code() == Some(2) && said.contains("there is no table inet palisade"),
        &said,
    )?;

    world.policies(DB_INGRESS)?;
    let db = world.address(&pod("db"), Family::V4)?;
    let recorded = |packets: u64| {
        let all = || Ok(record(&world, "b")?.iter().map(|d| d.packets).sum::<u64>() == packets);
        until("what was denied is recorded", all)
    };
    send(&world, &pod("api"), db, [9000, 9000, 9000].into_iter())?;
    recorded(3)?;
    sleep(Duration::from_millis(1100));
    send(
        &world,
        &node("a"),
        world.address(&pod("db"), Family::V6)?,
        [9001].into_iter(),
    )?;
    // Allowed by the manifests, and not by the kernel.
    send(&world, &pod("api"), db, [53].into_iter())?;
    recorded(5)?;

    let without = palisade(&world, &on_b, &["denied"])?;
    let text = String::from_utf8(without.stdout)?;
    must(without.status.success() && text.lines().count() == 4, &text)?;
    must(text.contains(&db.to_string()) && !text.contains("shop/"), &text)?;
    must(
        String::from_utf8_lossy(&without.stderr).contains("--manifests PATH"),
        "no word of how to get names",
    )?;

    let output = palisade(&world, &on_b, &["denied", "--manifests", &path])?;
    let text = String::from_utf8(output.stdout)?;
    let line = |needle: &str| text.lines().find(|line| line.contains(needle)).unwrap_or_default();
    must(output.status.success() && text.starts_with("LAST SEEN"), &text)?;
    let scanned = line("9000/UDP");
    for words in [
        " 3  ",
        "shop/api",
        "shop/db",
        "ingress isolated by",
        "wants port 80/TCP, 53/UDP, asked for 9000/UDP",
    ] {
        must(scanned.contains(words), format!("{words} is not in\n{text}"))?;
    }
    must(line("53/UDP  ").contains("allowed now"), &text)?;
    // Of one family: the sets of the two are read one after the other, and how long ago something was is told as of then.
    must(
        text.find(scanned) < text.find("53/UDP  "),
        format!("the oldest is not the first:\n{text}"),
    )?;

    let output = palisade(
        &world,
        &on_b,
        &["denied", "--manifests", &path, "-o", "json", "--pod", "shop/api"],
    )?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    must(
        json["kind"] == "Denials" && json["denials"].as_array().map(Vec::len) == Some(2),
        &json,
    )?;
    let first = &json["denials"][0];
    must(
        first["from"]["pod"] == "api"
            && first["to"]["pod"] == "db"
            && first["packets"] == 3
            && first["verdict"] == "deny",
        &json,
    )?;
    watch(&world, &path, folder.path())
}

/// What is there, and then what comes.
fn watch(world: &World, manifests: &str, folder: &Path) -> Result {
    let log = folder.join("watch");
    let out = std::fs::File::create(&log)?;
    let start = || {
        without_settings(&mut Command::new(PROGRAM))
            .args(["denied", "--watch", "-o", "json", "--manifests", manifests])
            .stdout(out)
            .spawn()
    };
    let _child = Ended(world.netns(&node("b"))?.run(start)??);
    let ports = || -> Result<Vec<(String, u64)>> {
        let text = std::fs::read_to_string(&log)?;
        // The last line may still be on its way.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let rows = whole.lines().map(serde_json::from_str::<serde_json::Value>);
        let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
        let row = |row: &serde_json::Value| Some((row["port"].as_str()?.to_owned(), row["packets"].as_u64()?));
        Ok(rows.iter().filter_map(row).collect())
    };
    until("what is there is told", || Ok(ports()?.len() == 3))?;
    let db = world.address(&pod("db"), Family::V4)?;
    send(world, &pod("api"), db, [9002].into_iter())?;
    until("a new one is told", || {
        Ok(ports()?.last() == Some(&("9002/UDP".to_owned(), 1)))
    })?;
    send(world, &pod("api"), db, [9000].into_iter())?;
    until("an increase is told", || {
        Ok(ports()?.last() == Some(&("9000/UDP".to_owned(), 4)))
    })?;
    must(ports()?.len() == 5, format!("{:?}", ports()?))
}

/// The real program with `--deny-action reject`: its metrics, its log, and what a denied pod hears.
pub(crate) fn the_agent_counts_and_rejects() -> Result {
    let world = World::of(CLUSTER, Mode::Enforce)?;
    let folder = tempfile::tempdir()?;
    let own = folder.path().join("manifests");
    std::fs::create_dir(&own)?;
    std::fs::write(own.join("cluster.yaml"), manifests(&world, DB_INGRESS)?)?;
    let log = folder.path().join("log");
    let err = std::fs::File::create(&log)?;
    let on_b = node("b");
    world.netns(&on_b)?.ip("link set lo up\n")?;
    let http: SocketAddr = "127.0.0.1:9440".parse()?;
    let start = || {
        without_settings(&mut Command::new(PROGRAM))
            .args(["agent", "--node-name", "b", "--deny-action", "reject", "--manifests"])
            .arg(&own)
            .stderr(err)
            .spawn()
    };
    let _child = Ended(world.netns(&on_b)?.run(start)??);
    let get = |path: &str| -> Result<String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(http)?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        // Before the agent listens: nothing.
        Ok(world.netns(&on_b)?.run(ask)?.unwrap_or_default())
    };
    until("ready", || Ok(get("/readyz")?.starts_with("HTTP/1.1 200")))?;
    let db = world.address(&pod("db"), Family::V4)?;
    world.check(&pod("api"), (db, tcp(80)), &Outcome::Refused)?;
    // A connection attempt is one packet, or more where the machine is too busy to refuse the first in time.
    let attempts = counted(&world, "b", Direction::Ingress, db)?;
    must(attempts >= 1, "the attempt was not counted")?;
    send(&world, &pod("api"), db, std::iter::repeat_n(9000, 700))?;
    let all = attempts + 700;
    let line = format!("palisade_denied_packets_total{{namespace=\"shop\",pod=\"db\",direction=\"ingress\"}} {all}\n");
    until("all packets are counted", || Ok(get("/metrics")?.contains(&line)))?;
    let denied = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&log)?;
        let lines = text.lines().filter(|line| line.contains("\"message\":\"denied\""));
        Ok(lines.map(str::to_owned).collect())
    };
    until("two sorts are logged", || Ok(denied()?.len() == 2))?;
    let lines = denied()?;
    for words in ["shop/api (", "shop/db (", "9000/UDP", "isolated by shop/db"] {
        must(
            lines.iter().any(|line| line.contains(words)),
            format!("{words} is not in\n{lines:#?}"),
        )?;
    }
    Ok(())
}
