//! What the real agent does about a table that others damage, that an earlier one left behind, or that the kernel refuses,
//! while the flood goes on.

use std::fmt::Write;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::program;

use crate::cutoff::{MORE, PAUSE, lanes_of_a, with_more};
use crate::faults::{POLICIES, few_lost_and_none_leaked, proven};
use crate::flood::{Flood, Lane, Tally};
use crate::process::{Process, StandIn};
use crate::shop::CLUSTER;
use crate::world::{Family, Result, World, must, node, pod};

const REPAIRS: &str = "palisade_drift_repairs_total";

/// After a look at the table the agent rests for up to twenty times as long: a stall of five seconds in one is a hundred.
const REPAIRED: Duration = Duration::from_secs(300);

/// A world whose node `a` has a real agent, ready, with [`POLICIES`]; node `b` has its rules.
fn world(nft: Option<&StandIn>) -> Result<(World, Process)> {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let mut agent = Process::new(&world, "a", nft)?;
    agent.policies(POLICIES)?;
    agent.start_ready()?;
    Ok((world, agent))
}

/// The lanes for so long: nothing lost, nothing leaked.
fn sound(world: &World, lanes: &[Lane]) -> Result {
    let flood = Flood::start(world, lanes, PAUSE)?;
    sleep(Duration::from_millis(200));
    flood.stop(world)?.flawless()
}

/// Each damage is noticed and undone. What passes meanwhile is counted, and shows that the damage was one.
pub(crate) fn damage_is_undone_under_traffic() -> Result {
    let (world, mut agent) = world(None)?;
    let web = world.address(&pod("web"), Family::V4)?;
    let api = world.address(&pod("api"), Family::V4)?;
    let mut report = String::new();
    for (damage, opens) in [
        ("flush table inet palisade".to_owned(), true),
        ("delete table inet palisade".to_owned(), true),
        ("flush ruleset".to_owned(), true),
        ("insert rule inet palisade forward accept".to_owned(), true),
        ("flush chain inet palisade denied".to_owned(), true),
        (format!("delete element inet palisade eg4_isolated {{ {web} }}"), true),
        (format!("delete element inet palisade eg4_peers {{ {api} }}"), false),
        ("flush chain inet palisade egress4".to_owned(), true),
        ("add table inet palisade { flags dormant; }".to_owned(), true),
    ] {
        // Long enough for the agent to have looked at what it wrote, and to repair again.
        sleep(Duration::from_millis(1100));
        let before = agent.metric(REPAIRS)?;
        let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
        // However busy the machine is, the flood meets the damage before the agent does.
        agent.pause()?;
        world.netns(&node("a"))?.nft(&format!("{damage}\n"))?;
        flood.round()?;
        agent.go_on()?;
        let start = Instant::now();
        agent.until_within(REPAIRED, "repaired", |agent| Ok(agent.metric(REPAIRS)? > before))?;
        let took = start.elapsed();
        let tally = flood.stop(&world)?;
        let _ = writeln!(
            report,
            "  {damage}: repaired in {} ms; of {} datagrams {} leaked, {} lost",
            took.as_millis(),
            tally.sent(),
            tally.leaked(),
            tally.lost()
        );
        must(
            if opens { tally.leaked() > 0 } else { tally.lost() > 0 },
            format!("{damage}: the flood has seen nothing of it"),
        )?;
        must(opens || tally.leaked() == 0, format!("{damage}: opened the node"))?;
        sound(&world, &lanes_of_a()).map_err(|error| format!("after the repair of: {damage}: {error}"))?;
    }
    println!("{report}");
    agent.kill()
}

/// Another agent starts over what the first has left; then over a table of another layout, with rules, chains, sets and maps
/// that this version does not know.
pub(crate) fn a_restart_and_an_upgrade_let_nothing_pass() -> Result {
    let (world, mut agent) = world(None)?;
    agent.kill()?;
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    for _ in 0..5 {
        agent.start_ready()?;
        agent.kill()?;
    }
    flood.stop(&world)?.flawless()?;

    let older = "
        add chain inet palisade older_pod { comment \"of an older version\"; }
        add set inet palisade older_set { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 }; }
        add map inet palisade older_map { type ipv4_addr : verdict; elements = { 10.244.250.1 : goto older_pod }; }
        add rule inet palisade older_pod ip saddr @older_set counter drop
        add chain inet palisade older_base { type filter hook forward priority 9; policy accept; }
        add rule inet palisade older_base ip saddr vmap @older_map
        add rule inet palisade older_base ct original ip saddr 10.244.250.0/24 jump older_pod
    ";
    let mut tallies = Vec::new();
    for _ in 0..5 {
        world.netns(&node("a"))?.nft(older)?;
        let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
        agent.start_ready()?;
        agent.kill()?;
        tallies.push(flood.stop(&world)?);
        let text = list(&world)?;
        must(
            !text.contains("older"),
            format!("something of the older version is left: {text}"),
        )?;
    }
    let lost: u64 = tallies.iter().map(Tally::lost).sum();
    println!("5 restarts without a loss; 5 upgrades: {lost} lost");
    few_lost_and_none_leaked(&tallies)?;
    sound(&world, &lanes_of_a())
}

fn list(world: &World) -> Result<String> {
    let nft = program("nft")?;
    let list = || Command::new(nft).args(["list", "table", "inet", "palisade"]).output();
    let output = world.netns(&node("a"))?.run(list)??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// nft refuses whatever has a certain block in it: the policy with that block is closed, the others apply, and it gets its
/// chance when it changes.
pub(crate) fn a_refused_policy_is_closed_and_the_others_apply() -> Result {
    let stand_in = StandIn::new()?;
    let (world, mut agent) = world(Some(&stand_in))?;
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    stand_in.refuse("198\\.51\\.100\\.")?;
    stand_in.plan("0 - -")?;
    // Beside the refused one comes another that must apply at once.
    let other = MORE
        .replace("name: more", "name: other")
        .replace("198.51.100.0/24", "203.0.113.0/24");
    agent.policies(&format!("{POLICIES}{MORE}{other}"))?;
    agent.until("the others are in force", |_| with_more(&world))?;
    let documents = stand_in.documents()?;
    must(documents <= 10, format!("it took {documents} runs of nft"))?;
    agent.policies(&format!("{POLICIES}{MORE}"))?;
    agent.until("what only the refused one allows is denied", |_| {
        Ok(!with_more(&world)?)
    })?;
    let told = agent.get("/readyz")?;
    must(
        told.contains("200 OK") && told.contains("the kernel refuses the rules of NetworkPolicy shop/more"),
        told,
    )?;
    must(
        agent.metric("palisade_isolated_policies")? == 1,
        "the metric does not say so",
    )?;

    agent.policies(&format!(
        "{POLICIES}{}",
        MORE.replace("198.51.100.0/24", "198.18.0.0/24")
    ))?;
    agent.until("the mended one is in force", |_| with_more(&world))?;
    must(
        agent.metric("palisade_isolated_policies")? == 0,
        "the metric still says so",
    )?;
    must(agent.get("/readyz")?.ends_with("ready\n"), "there is still a warning")?;

    // At a start the others apply as well.
    agent.kill()?;
    agent.policies(&format!("{POLICIES}{MORE}{other}"))?;
    agent.start_ready()?;
    must(with_more(&world)?, "the others are not in force after a start")?;
    must(
        agent.metric("palisade_isolated_policies")? == 1,
        "the metric does not say so",
    )?;
    agent.kill()?;
    let tally = flood.stop(&world)?;
    must(
        tally.leaked() == 0 && tally.lost() * 200 < tally.sent(),
        format!("{} leaked, {} lost", tally.leaked(), tally.lost()),
    )
}
