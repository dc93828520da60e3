/* virtio-serial over the legacy virtio-pci interface (VIRTIO 1.1, 4.1.4.8 and 5.3), with the
 * multiport control protocol. Polled: the agent's thread looks at the rings at each clock tick. */
#include "agent.h"

enum { VENDOR = 0x1AF4, CONSOLE_DEVICE = 0x1003, FEATURE_MULTIPORT = 2 };
/* registers in I/O space */
enum { HOST_FEATURES = 0, GUEST_FEATURES = 4, QUEUE_PAGE = 8, QUEUE_SIZE = 12 };
enum { QUEUE_SELECT = 14, QUEUE_NOTIFY = 16, DEVICE_STATUS = 18 };
enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4 };
enum { DESCRIPTOR_DEVICE_WRITES = 2, RING_NO_INTERRUPT = 1 };
enum { PORT_DEVICE_READY = 0, PORT_ADD = 1, PORT_READY = 3, PORT_OPEN = 6, PORT_NAME = 7 };
enum { CONTROL_RECEIVE = 2, CONTROL_SEND = 3 };
#define NO_PORT 0xFFFFFFFF
enum { RECEIVE_BUFFERS = 32, SEND_BUFFER = 65536, CONTROL_BUFFER = 128 };

typedef struct _VIRTQUEUE {
    USHORT Number, Size, Seen; /* Seen: used entries already handled */
    struct {
        ULONG64 Address;
        ULONG Length;
        USHORT Flags, Next;
    } * Descriptors;
    volatile struct { USHORT Flags, Index, Ring[]; } * Available;
    volatile struct {
        USHORT Flags, Index;
        struct {
            ULONG Id, Length;
        } Ring[];
    } * Used;
    PUCHAR Buffers; /* one a descriptor, physically contiguous */
    ULONG BufferSize;
} VIRTQUEUE, *PVIRTQUEUE;

typedef struct _PORT_CONTROL {
    ULONG Port;
    USHORT Event, Value;
    CHAR Name[];
} PORT_CONTROL;

static USHORT VioPort; /* base of the device's registers */
static VIRTQUEUE VioControlReceive, VioControlSend, VioReceive, VioSend;
static PCSTR VioPortName;
static ULONG VioPortNumber = NO_PORT;
BOOLEAN VioSerialHungUp;

/* Hands a buffer to the device. */
static void VioPost(PVIRTQUEUE Queue, ULONG Descriptor, ULONG Length) {
    Queue->Descriptors[Descriptor].Length = Length;
    Queue->Available->Ring[Queue->Available->Index % Queue->Size] = (USHORT)Descriptor;
    __asm__ volatile("" ::: "memory"); /* the entry before the index; x86 keeps stores in order */
    Queue->Available->Index++;
    __outword(VioPort + QUEUE_NOTIFY, Queue->Number);
}

/* Gives the device its ring and `Count` buffers; a receive queue is filled with them at once. */
static BOOLEAN VioSetUpQueue(PVIRTQUEUE Queue, ULONG Number, ULONG BufferSize, ULONG Count) {
    __outword(VioPort + QUEUE_SELECT, (USHORT)Number);
    USHORT Size = __inword(VioPort + QUEUE_SIZE);
    SIZE_T DriverPart = ROUND_TO_PAGES(Size * 16 + 6 + Size * 2);
    Count = MIN(Count, Size);
    PHYSICAL Ring = MiAllocatePages((ULONG)BYTES_TO_PAGES(DriverPart + 6 + Size * 8));
    PHYSICAL Buffers = MiAllocatePages((ULONG)BYTES_TO_PAGES(BufferSize * Count));
    if (Size == 0 || Ring == 0 || Buffers == 0) return FALSE;
    PUCHAR Base = MiPhysicalToVirtual(Ring);
    *Queue = (VIRTQUEUE){(USHORT)Number, Size, 0, (PVOID)Base, (PVOID)(Base + Size * 16),
        (PVOID)(Base + DriverPart), MiPhysicalToVirtual(Buffers), BufferSize};
    Queue->Available->Flags = RING_NO_INTERRUPT;
    __outdword(VioPort + QUEUE_PAGE, (ULONG)(Ring >> PAGE_SHIFT));
    for (ULONG i = 0; i < Count; i++) {
        Queue->Descriptors[i].Address = Buffers + i * BufferSize;
        if (Number % 2 != 0) continue; /* odd queues send */
        Queue->Descriptors[i].Flags = DESCRIPTOR_DEVICE_WRITES;
        VioPost(Queue, i, BufferSize);
    }
    return TRUE;
}

/* Sends through the queue's single buffer. Spins a little before it sleeps: the device is quick. */
static void VioSendBuffer(PVIRTQUEUE Queue, const void *Data, ULONG Length) {
    memcpy(Queue->Buffers, Data, Length);
    VioPost(Queue, 0, Length);
    for (ULONG Tries = 0; Queue->Used->Index == Queue->Seen; Tries++)
        Tries < 50 ? KiStallMicroseconds(20) : KiSleep(1);
    Queue->Seen++;
}

static void VioSendControl(ULONG Port, USHORT Event, USHORT Value) {
    PORT_CONTROL Message = {Port, Event, Value};
    VioSendBuffer(&VioControlSend, &Message, sizeof(Message));
}

/* Copies out what the device used next and gives it the buffer back; the length, 0 for nothing. */
static ULONG VioReceiveBuffer(PVIRTQUEUE Queue, PVOID Data) {
    if (Queue->Size == 0 || Queue->Seen == Queue->Used->Index) return 0;
    USHORT Entry = Queue->Seen++ % Queue->Size;
    ULONG Descriptor = Queue->Used->Ring[Entry].Id, Length = Queue->Used->Ring[Entry].Length;
    memcpy(Data, Queue->Buffers + Descriptor * Queue->BufferSize, Length);
    VioPost(Queue, Descriptor, Queue->BufferSize);
    return Length;
}

static void VioHandleControl(const PORT_CONTROL *Message, ULONG Length) {
    if (Message->Event == PORT_ADD) VioSendControl(Message->Port, PORT_READY, 1);
    if (Message->Event == PORT_OPEN && Message->Port == VioPortNumber && !Message->Value)
        VioSerialHungUp = TRUE;
    if (Message->Event != PORT_NAME || VioPortNumber != NO_PORT || Length <= sizeof(*Message) ||
        strncmp(Message->Name, VioPortName, Length - sizeof(*Message)) != 0)
        return;
    ULONG First = Message->Port == 0 ? 0 : 2 + 2 * Message->Port;
    if (!VioSetUpQueue(&VioReceive, First, VIO_BUFFER, RECEIVE_BUFFERS) ||
        !VioSetUpQueue(&VioSend, First + 1, SEND_BUFFER, 1))
        return;
    VioPortNumber = Message->Port;
    VioSendControl(VioPortNumber, PORT_OPEN, 1);
}

BOOLEAN VioSerialStart(PCSTR PortName) {
    ULONG Device, Function;
    if (!HalPciFind(VENDOR, CONSOLE_DEVICE, &Device, &Function)) return FALSE;
    VioPort = HalPciRead(0, Device, Function, 0x10) & 0xFFFC;
    VioPortName = PortName;
    /* I/O space and bus mastering on, interrupts off */
    HalPciWrite(0, Device, Function, 4, (HalPciRead(0, Device, Function, 4) & 0xFFFF) | 0x405);
    __outbyte(VioPort + DEVICE_STATUS, 0); /* resets: rings of an earlier boot are forgotten */
    __outbyte(VioPort + DEVICE_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    __outdword(VioPort + GUEST_FEATURES, __indword(VioPort + HOST_FEATURES) & FEATURE_MULTIPORT);
    /* The control buffers must be there before DEVICE_READY: the device drops what finds no room,
     * and sends up to three messages a port at once. */
    if (!VioSetUpQueue(&VioControlReceive, CONTROL_RECEIVE, CONTROL_BUFFER, 0x10000) ||
        !VioSetUpQueue(&VioControlSend, CONTROL_SEND, CONTROL_BUFFER, 1))
        return FALSE;
    __outbyte(VioPort + DEVICE_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
    VioSendControl(0, PORT_DEVICE_READY, 1);
    return TRUE;
}

ULONG VioSerialRead(PUCHAR Buffer) {
    UCHAR Message[CONTROL_BUFFER];
    /* Before the control messages: bytes taken here are then never newer than a hang-up still
     * unread, which would throw away the next client's request. */
    ULONG Length = VioReceiveBuffer(&VioReceive, Buffer);
    for (ULONG Size; (Size = VioReceiveBuffer(&VioControlReceive, Message)) > 0;)
        VioHandleControl((PVOID)Message, Size);
    return Length;
}

void VioSerialWrite(const void *Data, ULONG Length) {
    for (ULONG Sent = 0, Part; Sent < Length; Sent += Part) {
        Part = MIN(Length - Sent, (ULONG)SEND_BUFFER);
        VioSendBuffer(&VioSend, (const UCHAR *)Data + Sent, Part);
    }
}
