//! Probes against servers that behave and servers that do not, each in a laboratory of its own: a
//! host with three uplinks, of which `eth0` is the one that everything takes by itself.

mod api;
mod bed;
mod dns;
mod http;
mod icmp;
mod kinds;
mod sockets;
mod tcp;
