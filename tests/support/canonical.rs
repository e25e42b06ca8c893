//! Listings that say the same look the same, whatever changes led to them.

use std::collections::BTreeMap;

use palisade::nft::listing::Listing;
use palisade::nft::names::Side;

/// A listing without the numbers that rendering gives: classes and chains of ranges are numbered in the order in which they
/// are met on the way of a packet, and there is one generation of CIDR maps.
pub(crate) fn canonical(listing: &Listing) -> Listing {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for side in Side::all() {
        let set = |name: &str| listing.sets.get(&format!("{side}_{name}")).into_iter().flatten();
        let entry = &listing.chains[&format!("{}{}", side.direction, side.family)];
        let (class, ranges) = (format!("{side}_c"), format!("{side}_r"));
        let numbered = |word: &str, prefix: &str| {
            let number = word.strip_prefix(prefix)?;
            number.parse::<u32>().ok().map(|_| word.to_owned())
        };
        let way = set("peers").chain(set("cidrs_0")).chain(set("cidrs_1")).chain(entry);
        let mut columns = vec![format!("{side}_pods"), format!("{side}_outside")];
        for word in way.flat_map(|text| words(text)) {
            if let Some(name) = numbered(word, &class)
                && !columns.contains(&name)
            {
                names.insert(name.clone(), format!("{side}_class{:03}", columns.len()));
                columns.push(name);
            }
        }
        let mut met = 0;
        for column in columns {
            let leads = listing.sets.get(&format!("{column}_ranges")).into_iter().flatten();
            for name in leads
                .flat_map(|text| words(text))
                .filter_map(|word| numbered(word, &ranges))
            {
                names.entry(name).or_insert_with(|| {
                    met += 1;
                    format!("{side}_ranges{met:03}")
                });
            }
        }
        for generation in 0..2 {
            names.insert(format!("{side}_cidrs_{generation}"), format!("{side}_cidrs"));
        }
    }
    let word = |word: &str| {
        let of_column = || {
            let (column, extent) = word.rsplit_once('_')?;
            Some(format!("{}_{extent}", names.get(column)?))
        };
        names
            .get(word)
            .cloned()
            .or_else(of_column)
            .unwrap_or_else(|| word.to_owned())
    };
    let rename = |text: &String| -> String {
        let pieces = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let piece = |piece: &str| {
            let end = piece
                .trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .len();
            word(&piece[..end]) + &piece[end..]
        };
        pieces.map(piece).collect()
    };
    let chains = listing.chains.iter();
    let sets = listing.sets.iter();
    Listing {
        flagged: listing.flagged,
        chains: chains
            .map(|(name, rules)| (rename(name), rules.iter().map(rename).collect()))
            .collect(),
        sets: sets
            .map(|(name, elements)| (rename(name), elements.iter().map(rename).collect()))
            .collect(),
        definitions: (listing.definitions.iter())
            .map(|(name, definition)| (rename(name), definition.clone()))
            .collect(),
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}
