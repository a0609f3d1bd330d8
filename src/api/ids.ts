import { createHash, randomInt } from 'node:crypto';

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
/** 62^24 is about 2^143: ids never meet by chance. */
const LENGTH = 24;

/** Random letters and digits, from a source that nobody can predict. */
export function randomText(length: number = LENGTH): string {
  return Array.from({ length }, () => ALPHABET.charAt(randomInt(ALPHABET.length))).join('');
}

/** Letters and digits that the same key always gives: what is created under them is created once. */
export function derivedText(key: string): string {
  let rest = BigInt(`0x${sha256(key)}`);
  const base = BigInt(ALPHABET.length);
  let text = '';
  while (text.length < LENGTH) {
    text += ALPHABET.charAt(Number(rest % base));
    rest /= base;
  }
  return text;
}

/** Hex digest of a text's UTF-8 bytes. */
export function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** Only such ids become part of a key in the store; any other names nothing that exists. */
export function isFileId(text: string): boolean {
  return /^file-[A-Za-z0-9_-]{1,100}$/.test(text);
}

/** As `isFileId`, of deployment templates. */
export function isTemplateId(text: string): boolean {
  return /^tpl_[A-Za-z0-9]{1,100}$/.test(text);
}

/** As `isFileId`, of provisions. */
export function isProvisionId(text: string): boolean {
  return /^prov_[A-Za-z0-9_]{1,120}$/.test(text);
}

/** As `isFileId`, of uploads. */
export function isUploadId(text: string): boolean {
  return /^upload_[A-Za-z0-9]{1,100}$/.test(text);
}

/** As `isFileId`, of jobs. */
export function isJobId(text: string): boolean {
  return /^job_[A-Za-z0-9]{1,100}$/.test(text);
}
