//! Policies, labels and pods change through the API; packets follow, and what cannot be followed is told there.

use serde_json::json;
use tokio::runtime::Runtime;

use crate::api::Kind;
use crate::server::Server;
use crate::world::{DNS, Result, WEB, World, place};

pub(crate) fn follow(runtime: &Runtime, server: impl Server) -> Result {
    let mut world = World::new(runtime, server)?;
    let [web, near, far, spare] = ["web", "near", "far", "spare"].map(|name| place("shop", name));
    let guest = place("other", "guest");
    world.pod("shop", "web", json!({"app": "web"}), &web);
    world.pod("shop", "near", json!({"role": "client"}), &near);
    world.pod("shop", "far", json!({}), &far);
    world.pod("other", "guest", json!({}), &guest);

    // Without a policy everybody is answered by everybody whom the rest is about.
    for client in [&near, &far, &spare, &guest] {
        world.passes(client, &web, WEB)?;
        world.passes(client, &web, DNS)?;
    }
    world.passes(&far, &near, WEB)?;

    // A policy comes: only clients, and only the one port.
    let clients = json!([{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 80}]}]);
    let only = |ingress: &serde_json::Value| json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress});
    world.policy("web", only(&clients));
    world.dropped(&far, &web, WEB)?;
    world.dropped(&spare, &web, WEB)?;
    world.dropped(&guest, &web, WEB)?;
    world.dropped(&near, &web, DNS)?;
    world.passes(&near, &web, WEB)?;
    world.passes(&far, &near, WEB)?;

    // Labels of pods change sides.
    world.pod("shop", "far", json!({"role": "client"}), &far);
    world.pod("shop", "near", json!({"role": "none"}), &near);
    world.passes(&far, &web, WEB)?;
    world.dropped(&near, &web, WEB)?;

    // A pod goes, and what is left is an address that nobody has.
    world.delete(Kind::Pod, "far");
    world.dropped(&far, &web, WEB)?;
    // It comes again with another address, and again with its own.
    world.pod("shop", "far", json!({"role": "client"}), &spare);
    world.passes(&spare, &web, WEB)?;
    world.dropped(&far, &web, WEB)?;
    world.delete(Kind::Pod, "far");
    world.dropped(&spare, &web, WEB)?;
    world.pod("shop", "far", json!({"role": "client"}), &far);
    world.passes(&far, &web, WEB)?;
    world.dropped(&spare, &web, WEB)?;

    // The pod that is protected goes, and with it its protection; another one comes at the same address.
    world.delete(Kind::Pod, "web");
    world.passes(&near, &web, WEB)?;
    world.pod("shop", "web-again", json!({"app": "web"}), &web);
    world.dropped(&near, &web, WEB)?;
    world.passes(&far, &web, WEB)?;
    // And stops being protected when its labels say so.
    world.pod("shop", "web-again", json!({"app": "other"}), &web);
    world.passes(&near, &web, WEB)?;
    world.pod("shop", "web-again", json!({"app": "web"}), &web);
    world.dropped(&near, &web, WEB)?;

    // The policy changes, and then the labels of the namespace that it speaks of.
    world.policy(
        "web",
        only(&json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": "green"}}}]}])),
    );
    world.dropped(&far, &web, WEB)?;
    world.dropped(&guest, &web, WEB)?;
    world.namespace("other", "green");
    world.passes(&guest, &web, WEB)?;
    world.passes(&guest, &web, DNS)?;
    world.namespace("other", "blue");
    world.dropped(&guest, &web, WEB)?;

    // A mode that is none is told by an Event, once for all agents, and the policy stays in force.
    let misspelt = json!({"palisade.dev/mode": "adit"});
    world.policy_with("web", misspelt, only(&clients));
    let invalid = ("PolicyInvalid".to_owned(), "web".to_owned());
    assert_eq!(world.events()?, std::slice::from_ref(&invalid));
    world.dropped(&guest, &web, WEB)?;
    world.dropped(&near, &web, WEB)?;
    world.passes(&far, &web, WEB)?;

    // The other direction, on the other node.
    world.policy(
        "far",
        json!({"podSelector": {"matchLabels": {"role": "client"}}, "policyTypes": ["Egress"]}),
    );
    world.dropped(&far, &near, WEB)?;
    world.passes(&spare, &near, WEB)?;
    world.delete(Kind::NetworkPolicy, "far");
    world.passes(&far, &near, WEB)?;

    assert_eq!(world.events()?, [invalid]);
    // Without the policy all is as it was.
    world.delete(Kind::NetworkPolicy, "web");
    for client in [&near, &far, &spare, &guest] {
        world.passes(client, &web, WEB)?;
        world.passes(client, &web, DNS)?;
    }
    world.stop()
}
