import { webcrypto } from 'node:crypto';
import './reflect-metadata.ts';

/** What an HTTPS server and its clients need; all of it PEM. */
export interface Certificates {
  ca: string;
  cert: string;
  key: string;
}

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 86_400_000;

function toPem(der: ArrayBuffer): string {
  const text = Buffer.from(der)
    .toString('base64')
    .replaceAll(/.{64}/g, (line) => `${line}\n`);
  return `-----BEGIN PRIVATE KEY-----\n${text.trimEnd()}\n-----END PRIVATE KEY-----\n`;
}

/** A certificate authority of its own, and one server certificate for `names` and `addresses`. */
export async function makeCertificates(
  names: readonly string[],
  addresses: readonly string[],
): Promise<Certificates> {
  // After the polyfill, without which it does not load.
  const x509 = await import('@peculiar/x509');
  x509.cryptoProvider.set(webcrypto);
  const { subtle } = webcrypto;
  const generate = async () => subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
  const [authority, server] = await Promise.all([generate(), generate()]);
  const notBefore = new Date(Date.now() - DAY_MS);
  const notAfter = new Date(Date.now() + 30 * DAY_MS);
  const ca = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: '01',
    name: 'CN=kubernetes',
    notBefore,
    notAfter,
    signingAlgorithm: ALGORITHM,
    keys: authority,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(
        x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.digitalSignature,
        true,
      ),
      await x509.SubjectKeyIdentifierExtension.create(authority.publicKey),
    ],
  });
  const cert = await x509.X509CertificateGenerator.create({
    serialNumber: '02',
    subject: 'CN=kube-apiserver',
    issuer: ca.subject,
    notBefore,
    notAfter,
    signingAlgorithm: ALGORITHM,
    publicKey: server.publicKey,
    signingKey: authority.privateKey,
    extensions: [
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension([
        ...names.map((value) => ({ type: 'dns' as const, value })),
        ...addresses.map((value) => ({ type: 'ip' as const, value })),
      ]),
    ],
  });
  const key = await subtle.exportKey('pkcs8', server.privateKey);
  return { ca: ca.toString('pem'), cert: cert.toString('pem'), key: toPem(key) };
}
