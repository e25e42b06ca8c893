//! Stub.
mod cluster;
mod rivals;
mod traffic;
mod variants;
mod world;
use cluster::*;
use std::net::Ipv4Addr;
use world::*;
fn main() {
    let dump = std::path::PathBuf::from("/tmp/dpb_dump");
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (policies, peers) = (args.next().unwrap().parse().unwrap(), args.next().unwrap().parse().unwrap());
    let isolated = if args.next().unwrap() == "both" { Isolated::Both } else { Isolated::One };
    let rounds: usize = args.next().unwrap().parse().unwrap();
    let files: Vec<_> = args.map(std::path::PathBuf::from).collect();
    let point = Point { isolated, policies, peers };
    let world = World::build().unwrap();
    traffic::pin(1).unwrap();
    world.client.run(|| {
        let mut traffic = traffic::Traffic::new(&world).unwrap();
        let mut loaded = variants::Loaded::new(&world, &point.cluster(), variants::all(&files), Some(&dump)).unwrap();
        let n = loaded.variants.len();
        for i in 0..n {
            loaded.wake(i).unwrap();
            let probes: Vec<bool> = [(CLIENT, PORT), (CLIENT, variants::NO_PORT), (OTHER, PORT), (OTHER, FIRST_PORT), (STRANGER, PORT)].iter().flat_map(|(a, p): &(Ipv4Addr, u16)| [false, true].map(|tcp| traffic.passes(*a, tcp, *p))).collect();
            eprintln!("{}: load {:?} {probes:?}", loaded.variants[i].name, loaded.load_time[i]);
        }
        let mut all = vec![vec![]; n];
        for r in 0..rounds {
            for i in 0..n {
                let i = (i + r) % n;
                loaded.wake(i).unwrap();
                all[i].push((traffic.packet(16), traffic.new_flow(), { let c = traffic.connections(); c.iter().map(|c| c.cost.as_nanos() as f64).sum::<f64>() / c.len() as f64 }));
            }
        }
        let med = |mut v: Vec<f64>| { v.sort_by(f64::total_cmp); v[v.len() / 2] };
        for i in 0..n {
            let f = |g: fn(&(f64, f64, f64)) -> f64| (med(all[i].iter().map(g).collect()), med(all[i].iter().zip(&all[0]).map(|(a, b)| g(a) / g(b)).collect()));
            let (p, nf, c) = (f(|x| x.0), f(|x| x.1), f(|x| x.2));
            println!("{:45} packet {:8.0} {:6.3}  new {:8.0} {:6.3}  tcp {:8.0} {:6.3}", loaded.variants[i].name, p.0, p.1, nf.0, nf.1, c.0, c.1);
        }
    }).unwrap();
}
