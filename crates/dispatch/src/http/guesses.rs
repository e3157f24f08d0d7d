//! Wrong tokens, counted by where they came from: whoever guesses is not heard for a while.
//! Must not grow with the number of guessers, and must not shut out a right token because somebody
//! else on the same machine guesses: what is counted is the pair of place and token guessed at.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Wrong tokens that are only refused, within [`WINDOW`].
const FREE: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
const LOCKED_FIRST: Duration = Duration::from_secs(60);
const LOCKED_MAX: Duration = Duration::from_secs(15 * 60);
/// Remembered at once; the one that was seen longest ago is forgotten first, of those that are heard.
const PLACES_MAX: usize = 4096;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// Somebody on this machine, by a unix socket.
    Socket,
    Net(IpAddr),
}

impl Peer {
    /// Who has one address of an IPv6 network has all of it.
    fn network(self) -> Self {
        match self {
            Self::Net(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(v4) => Self::Net(v4.into()),
                None => {
                    let [a, b, c, d, ..] = address.segments();
                    Self::Net(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
                }
            },
            other => other,
        }
    }
}

/// From where, and at which token: none where the text names none that there is, so that all who spray
/// from one place share one count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    peer: Peer,
    token: Option<String>,
}

impl Place {
    pub(crate) fn new(peer: Peer, token: Option<&str>) -> Self {
        Self {
            peer: peer.network(),
            token: token.map(str::to_owned),
        }
    }
}

#[derive(Debug)]
struct Count {
    wrong: u32,
    since: Instant,
    last: Instant,
    /// Not heard until then, and how long that was.
    locked: Option<(Instant, Duration)>,
}

#[derive(Debug, Default)]
pub(crate) struct Guesses(Mutex<HashMap<Place, Count>>);

impl Guesses {
    fn places(&self) -> MutexGuard<'_, HashMap<Place, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long this one is not heard.
    pub(crate) fn locked(&self, place: &Place, now: Instant) -> Option<Duration> {
        let places = self.places();
        let (until, _) = places.get(place)?.locked?;
        let left = until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn wrong(&self, place: Place, now: Instant) {
        let mut places = self.places();
        if places.len() >= PLACES_MAX && !places.contains_key(&place) {
            let locked = |count: &Count| count.locked.is_some_and(|(until, _)| until > now);
            let oldest = places
                .iter()
                .min_by_key(|(_, count)| (locked(count), count.last));
            if let Some(oldest) = oldest.map(|(place, _)| place.clone()) {
                places.remove(&oldest);
            }
        }
        let count = places.entry(place).or_insert(Count {
            wrong: 0,
            since: now,
            last: now,
            locked: None,
        });
        if now.saturating_duration_since(count.since) > WINDOW {
            (count.wrong, count.since) = (0, now);
        }
        count.wrong += 1;
        count.last = now;
        if count.wrong > FREE {
            let before = count.locked.map(|(_, long)| long);
            let long = before.map_or(LOCKED_FIRST, |long| (long * 2).min(LOCKED_MAX));
            count.locked = Some((now + long, long));
            (count.wrong, count.since) = (0, now + long);
        }
    }

    /// The right one: what came before was a mistake.
    pub(crate) fn right(&self, place: &Place) {
        self.places().remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::Net(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn who_guesses_is_not_heard_for_longer_and_longer() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let place = Place::new(peer(1), None);
        for _ in 0..FREE {
            guesses.wrong(place.clone(), now);
        }
        assert_eq!(guesses.locked(&place, now), None);
        guesses.wrong(place.clone(), now);
        assert_eq!(guesses.locked(&place, now), Some(LOCKED_FIRST));
        // Somebody else, and somebody there with another token.
        assert_eq!(guesses.locked(&Place::new(peer(2), None), now), None);
        let other = Place::new(peer(1), Some("1a2b3c4d"));
        assert_eq!(guesses.locked(&other, now), None);
        let later = now + LOCKED_FIRST;
        assert_eq!(guesses.locked(&place, later), None);
        for _ in 0..=FREE {
            guesses.wrong(place.clone(), later);
        }
        assert_eq!(guesses.locked(&place, later), Some(LOCKED_FIRST * 2));
        guesses.right(&place);
        assert_eq!(guesses.locked(&place, later), None);
    }

    #[test]
    fn a_mistake_now_and_then_is_no_guessing() {
        let (guesses, mut now) = (Guesses::default(), Instant::now());
        let place = Place::new(Peer::Socket, None);
        for _ in 0..5 * FREE {
            guesses.wrong(place.clone(), now);
            now += WINDOW / 4;
        }
        assert_eq!(guesses.locked(&place, now), None);
    }

    #[test]
    fn a_lock_is_not_washed_away() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let locked = Place::new(peer(1), Some("1a2b3c4d"));
        for _ in 0..=FREE {
            guesses.wrong(locked.clone(), now);
        }
        let later = now + LOCKED_FIRST / 2;
        for n in 0..PLACES_MAX + 10 {
            guesses.wrong(Place::new(peer(2), Some(&format!("{n:08x}"))), later);
        }
        assert!(guesses.locked(&locked, later).is_some());
        assert_eq!(guesses.places().len(), PLACES_MAX);
    }

    #[test]
    fn memory_is_bounded_and_a_network_counts_once() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for n in 0..PLACES_MAX + 10 {
            guesses.wrong(Place::new(peer(1), Some(&format!("{n:08x}"))), now);
        }
        assert_eq!(guesses.places().len(), PLACES_MAX);
        let one: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let other: Ipv6Addr = "2001:db8::f:2".parse().unwrap();
        let far: Ipv6Addr = "2001:db8:0:1::1".parse().unwrap();
        let place = |address: Ipv6Addr| Place::new(Peer::Net(address.into()), None);
        assert_eq!(place(one), place(other));
        assert_ne!(place(one), place(far));
        let mapped: Ipv6Addr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(place(mapped), Place::new(peer(1), None));
    }
}
