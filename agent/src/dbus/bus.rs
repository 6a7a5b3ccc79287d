//! A connection to the message bus: calls that end, and signals of those whom it follows.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::message::Type as Kind;
use zbus::zvariant::{DynamicType, ObjectPath, OwnedObjectPath, OwnedValue};
use zbus::{Connection, Message, MessageStream};

use super::Error;

/// Longest that anybody may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The bus's own name, which is also the name of its interface.
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: ObjectPath<'static> =
    ObjectPath::from_static_str_unchecked("/org/freedesktop/DBus");
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
/// What the bus says to a question about a name that nobody has.
const NO_OWNER: &str = "org.freedesktop.DBus.Error.NameHasNoOwner";

/// Properties of an object's interface by their names.
pub(super) type Properties = HashMap<String, OwnedValue>;
/// Objects, their interfaces, and the properties of these.
pub(super) type Objects = HashMap<OwnedObjectPath, HashMap<String, Properties>>;

/// Who sent `message`, as the bus says.
fn sender(message: &Message) -> Option<String> {
    message.header().sender().map(ToString::to_string)
}

/// Takes a property out; `None`, if it is not there or of another type.
pub(super) fn take<T: TryFrom<OwnedValue>>(properties: &mut Properties, name: &str) -> Option<T> {
    properties.remove(name)?.try_into().ok()
}

/// Rings when something changed at a manager.
pub(super) struct Bell {
    /// The manager's name.
    pub(super) name: &'static str,
    /// Whose signals ring it.
    owner: watch::Sender<Option<String>>,
    rung: Notify,
}

impl Bell {
    /// One that rings when `name` gets another owner, and later by its owner's signals.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            owner: watch::Sender::new(None),
            rung: Notify::new(),
        }
    }

    /// Waits until it rings, or takes that it rang since it was waited for.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    fn hear(&self, signal: &Message) {
        let Some(sender) = sender(signal) else { return };
        let rings = if sender == BUS {
            let member = signal.header().member().map(ToString::to_string);
            let body = signal.body();
            let (name, ..) = body.deserialize::<(&str, &str, &str)>().unwrap_or_default();
            member.as_deref() == Some("NameOwnerChanged") && name == self.name
        } else {
            self.owner.borrow().as_ref() == Some(&sender)
        };
        if rings {
            self.rung.notify_one();
        }
    }
}

/// A connection to the message bus.
pub(super) struct Bus {
    connection: Connection,
}

impl Bus {
    /// Connects to the bus at `address`, or to the system's; with it comes all that the bus sends.
    pub(super) async fn connect(address: Option<&str>) -> Result<(Self, MessageStream), Error> {
        let builder = address.map_or_else(Builder::system, Builder::address);
        let connecting = builder.map_err(Error::Address)?.build();
        let connected = timeout(ANSWER, connecting).await;
        let connection = connected
            .map_err(|_| Error::ConnectSilent)?
            .map_err(Error::Connect)?;
        let messages = MessageStream::from(&connection);
        Ok((Self { connection }, messages))
    }

    /// Has the bus send signals that `rule` describes.
    pub(super) async fn subscribe(&self, rule: &str) -> Result<(), Error> {
        let call = Call {
            whom: BUS,
            owner: BUS,
            path: &BUS_PATH,
            interface: BUS,
            method: "AddMatch",
        };
        self.call(call, &rule).await?;
        Ok(())
    }

    /// Who has the name of `bell`, which then rings by the signals of that one. Asking starts nobody.
    pub(super) async fn owner(&self, bell: &Bell) -> Result<Option<Peer<'_>>, Error> {
        let call = Call {
            whom: BUS,
            owner: BUS,
            path: &BUS_PATH,
            interface: BUS,
            method: "GetNameOwner",
        };
        let owner = match self.call(call, &bell.name).await {
            Ok(answer) => Some(call.read::<String>(&answer)?),
            Err(error) if error.refusal().is_some_and(|(name, _)| name == NO_OWNER) => None,
            Err(error) => return Err(error),
        };
        bell.owner.send_replace(owner.clone());
        Ok(owner.map(|owner| Peer {
            bus: self,
            name: bell.name,
            owner,
        }))
    }

    /// Asks, and waits for the answer of who was asked.
    async fn call(
        &self,
        call: Call<'_>,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Message, Error> {
        let asking = self.connection.call_method(
            Some(call.owner),
            call.path,
            Some(call.interface),
            call.method,
            body,
        );
        let Ok(answer) = timeout(ANSWER, asking).await else {
            return Err(Error::Silent {
                whom: call.whom,
                what: call.what(),
            });
        };
        let answer = answer.map_err(|source| Error::Ask {
            whom: call.whom,
            what: call.what(),
            source: Box::new(source),
        })?;
        // The system's bus lets no other answer; one that is set up otherwise may.
        if sender(&answer).as_deref() != Some(call.owner) {
            return Err(Error::Stranger {
                whom: call.whom,
                what: call.what(),
            });
        }
        Ok(answer)
    }
}

/// Rings each of `bells` by the signals that are meant for it, until the bus is gone.
pub(super) async fn listen(messages: &mut MessageStream, bells: &[&Bell]) -> Error {
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() == Kind::Signal {
            bells.iter().for_each(|bell| bell.hear(&message));
        }
    }
    Error::Ended
}

/// A rule for the signal by which the bus says that `name` has another owner.
pub(super) fn owner_changes(name: &str) -> String {
    format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{name}'")
}

/// A rule for changed properties of an interface of whoever has `name`, which the bus looks up.
pub(super) fn property_changes(name: &str, interface: &str) -> String {
    format!(
        "type='signal',sender='{name}',interface='{PROPERTIES}',member='PropertiesChanged',\
         arg0='{interface}'"
    )
}

/// A rule for objects that come and go at whoever has `name`, which the bus looks up.
pub(super) fn object_changes(name: &str) -> String {
    format!("type='signal',sender='{name}',interface='{OBJECT_MANAGER}'")
}

/// Who has a name on the bus: asked by the number of its connection, which stands for nobody else.
pub(super) struct Peer<'a> {
    bus: &'a Bus,
    name: &'static str,
    owner: String,
}

impl Peer<'_> {
    /// Properties of an interface of its object at `path`; `None`, if it has no such object any more.
    pub(super) async fn properties(
        &self,
        path: &ObjectPath<'_>,
        interface: &str,
    ) -> Result<Option<Properties>, Error> {
        let call = self.of(path, PROPERTIES, "GetAll");
        self.if_there(call, &interface).await
    }

    /// All objects below `path`; `None`, if there is nothing at `path`.
    pub(super) async fn objects(&self, path: &ObjectPath<'_>) -> Result<Option<Objects>, Error> {
        let call = self.of(path, OBJECT_MANAGER, "GetManagedObjects");
        self.if_there(call, &()).await
    }

    /// That it did not say all in time.
    pub(super) fn is_slow(&self) -> Error {
        Error::Slow { whom: self.name }
    }

    fn of<'a>(&'a self, path: &'a ObjectPath<'a>, interface: &'a str, method: &'a str) -> Call<'a> {
        Call {
            whom: self.name,
            owner: &self.owner,
            path,
            interface,
            method,
        }
    }

    /// What it answers; `None`, if it refuses, or answers by what is no such answer. A refusal of the bus
    /// is an error: then the peer is gone, or may not be asked.
    async fn if_there<T>(
        &self,
        call: Call<'_>,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Option<T>, Error>
    where
        T: serde::de::DeserializeOwned + zbus::zvariant::Type,
    {
        let read = match self.bus.call(call, body).await {
            Ok(answer) => call.read(&answer),
            Err(error) => Err(error),
        };
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_of(&self.owner) => {
                tracing::debug!("{}", error.words());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is asked of whom.
#[derive(Clone, Copy)]
struct Call<'a> {
    /// The name of who is asked.
    whom: &'static str,
    /// The connection that is asked.
    owner: &'a str,
    path: &'a ObjectPath<'a>,
    interface: &'a str,
    method: &'a str,
}

impl Call<'_> {
    fn what(&self) -> String {
        format!("{}.{} of {}", self.interface, self.method, self.path)
    }

    fn read<T>(&self, answer: &Message) -> Result<T, Error>
    where
        T: serde::de::DeserializeOwned + zbus::zvariant::Type,
    {
        answer.body().deserialize().map_err(|source| Error::Shape {
            whom: self.whom,
            what: self.what(),
            source: Box::new(source),
        })
    }
}

impl Error {
    /// The error message that was the answer, and its name.
    fn refusal(&self) -> Option<(&str, &Message)> {
        let Self::Ask { source, .. } = self else {
            return None;
        };
        match &**source {
            zbus::Error::MethodError(name, _, answer) => Some((name.as_str(), answer)),
            _ => None,
        }
    }

    /// Whether it is an answer of `owner`, and not of the bus or of nobody.
    fn is_of(&self, owner: &str) -> bool {
        let by = |(_, answer)| sender(answer).as_deref() == Some(owner);
        matches!(self, Self::Shape { .. }) || self.refusal().is_some_and(by)
    }
}
