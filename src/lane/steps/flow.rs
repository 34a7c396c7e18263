//! At-least-once delivery: windows of batches follow each other, many in flight, and the position moves behind each window
//! that is delivered with all before it.
//!
//! The producer keeps the order, and tries again for as long as it takes: lateness blocks the lane and keeps the producer,
//! for a new one would send everything in flight a second time. A failed or refused delivery drops it; what is behind the
//! position is sent again. While a refused range is sent again, one window at a time is in flight.

use std::{mem, time::Duration};

use super::{
    super::{
        broker::{Broker, Connect, DeliveryError},
        sent::Sent,
    },
    Lane, Stop, Turn,
};
use crate::{clock, spool::Seq};

/// So many full windows fit into what may be in flight. Smaller ones make for small requests while it is full.
const WINDOWS: usize = 4;

impl<C: Connect> Lane<C> {
    /// Sends the next window when there is `more` and room for it, and books what is delivered. Waits for deliveries when
    /// nothing can be sent.
    pub(super) fn flow(&mut self, more: bool) -> Result<Turn, Stop> {
        let sends = more && self.has_room() && self.send_window()?;
        let mut patience = if sends {
            Duration::ZERO
        } else {
            self.options.timing.late_every
        };
        while let Some(oldest) = self.flight.front() {
            let (behind, begun) = (oldest.behind(), oldest.begun);
            match self.broker()?.delivered(behind, clock::now() + patience) {
                Ok(()) => {}
                Err(DeliveryError::Late(_)) if patience.is_zero() => break,
                Err(DeliveryError::Late(error)) => {
                    if clock::since(begun) >= self.options.transaction_limit && self.blocked.is_none() {
                        self.block(error);
                    }
                    return Ok(Turn::Blocked(Duration::ZERO));
                }
                Err(error) => return Err(self.undelivered(error)),
            }
            patience = Duration::ZERO;
            if let Some(sent) = self.flight.pop_front() {
                self.backlog.advance(sent.end);
                self.account(&sent);
            }
            self.unblock();
        }
        Ok(Turn::Progress)
    }

    fn has_room(&self) -> bool {
        let events: usize = self.flight.iter().map(|sent| sent.events).sum();
        let bytes: usize = self.flight.iter().map(|sent| sent.bytes).sum();
        match self.refusals {
            Some(_) => self.flight.is_empty(),
            None => events < self.options.transaction_events && bytes < self.options.transaction_bytes,
        }
    }

    /// False when what comes next can't be had from the spool: it must wait until all before it is delivered.
    fn send_window(&mut self) -> Result<bool, Stop> {
        let first = self.flight.back().map_or(0, Sent::behind);
        if self.flight.is_empty() {
            self.broker()?.begin()?;
        }
        let mut sent = Sent::begin(first);
        let deadline = sent.begun + self.mode().time(self.options.transaction_limit);
        let result = self.send(&mut sent, self.options.transaction_events / WINDOWS, deadline);
        let nothing = sent.records.is_empty();
        if !nothing {
            self.flight.push_back(sent);
        }
        match result {
            Ok(()) => Ok(!nothing),
            Err(DeliveryError::Failed(error))
                if error.reason.is_of_the_spool() && nothing && !self.flight.is_empty() =>
            {
                Ok(false)
            }
            Err(error) => Err(self.undelivered(error)),
        }
    }

    /// Whatever failed or was refused, everything in flight will be sent again.
    fn undelivered(&mut self, error: DeliveryError) -> Stop {
        match error {
            DeliveryError::Failed(error) | DeliveryError::Late(error) => error.into(),
            DeliveryError::Refused { index, refusal } => {
                let flight = mem::take(&mut self.flight);
                let touched = flight.back().map_or(Seq(0), Sent::touched);
                let holds = |sent: &&Sent| index < sent.behind();
                match flight.iter().find(holds).or(flight.back()) {
                    Some(sent) => self.refused(sent, touched, index, refusal),
                    None => Stop::Again,
                }
            }
        }
    }
}
