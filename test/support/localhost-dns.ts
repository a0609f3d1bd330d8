import { interceptLocalhostDns } from 'fauxqs';

/** From here on this process finds every `….localhost` on this machine, as browsers do and not every resolver does. */
interceptLocalhostDns();
