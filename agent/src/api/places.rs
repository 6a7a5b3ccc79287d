//! Places for connections: so many in all, so many for each user, and some that only root can take, so
//! that no number of users (a user may have thousands of ids of its own, subuid(5)) shuts it out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::server::Limits;

/// Connections that are open, by user.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<u32, usize>>>);

/// The place of one connection; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    /// Takes a place.
    ///
    /// # Errors
    /// There is none for this user; in words.
    pub(super) fn take(&self, uid: u32, limits: &Limits) -> Result<Place, String> {
        let mut open = self.open();
        let all: usize = open.values().sum();
        let own = open.get(&uid).copied().unwrap_or(0);
        let left = limits.connections.saturating_sub(all);
        if left == 0 {
            return Err(format!("{all} connections are open"));
        }
        if uid != 0 {
            if own >= limits.per_user {
                return Err(format!("user {uid} has {own} connections open"));
            }
            if left <= limits.for_root {
                return Err(format!(
                    "{all} connections are open, and the rest is root's"
                ));
            }
        }
        open.insert(uid, own + 1);
        drop(open);
        Ok(Place {
            places: self.clone(),
            uid,
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        // Counts are whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        if let Some(own) = open.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Limits, Places};

    #[test]
    fn no_user_takes_the_places_of_others_and_no_number_of_users_those_of_root() {
        let limits = Limits {
            connections: 6,
            per_user: 2,
            for_root: 2,
            ..Limits::default()
        };
        let places = Places::default();
        let take = |uid| places.take(uid, &limits);
        let mut taken = vec![take(1).unwrap(), take(1).unwrap()];
        assert_eq!(take(1).unwrap_err(), "user 1 has 2 connections open");
        taken.extend([take(2).unwrap(), take(3).unwrap()]);
        let words = take(4).unwrap_err();
        assert_eq!(words, "4 connections are open, and the rest is root's");
        taken.extend([take(0).unwrap(), take(0).unwrap()]);
        assert_eq!(take(0).unwrap_err(), "6 connections are open");
        drop(taken);
        assert!(places.open().is_empty());
    }
}
